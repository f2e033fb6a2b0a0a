from __future__ import annotations

import dataclasses

import numpy as np

from oat_edge.bench.diagnosis import diagnose, undiagnosed
from oat_edge.bench.statistics import LatencyMs
from oat_edge.device.state import Range, SpanState, state_of
from oat_edge.evaluation.checks import Check
from oat_edge.evaluation.precisions import PrecisionDrop
from oat_edge.runtime.trt import WEAK
from tests.bench.made_up import (
    change,
    device_ms,
    row_of,
)
from tests.bench.test_diagnosis import GRAPH, HALF, QUIET, everywhere, of_flatness, on, only
from tests.bench.test_rows import CONFIG, KNOTS, make_rows
from tests.bench.test_rows import figures as figures_of


def span(clock, throttled=()):
    return SpanState(
        seconds=1.0, mean_w=None, power_readings=0, temperatures_c={"cpu": 80.0},
        clocks_mhz={"cpu": Range(min=clock, median=clock, max=clock)}, throttled=throttled,
    )  # fmt: skip


def test_warnings_that_the_bench_makes_of_a_trouble_are_covered_by_its_diagnosis():
    """Rows as the bench makes them: every one of their warnings is known to a diagnosis."""
    spans = (span(3000.0), span(2000.0, ("CPU too hot (core_throttle_count), 2 times",)))
    slow = figures_of(effect=0.2, spans={1: spans}, remarks=(GRAPH, WEAK))
    rows, flatness, _ = make_rows([slow], KNOTS, KNOTS, CONFIG)
    assert len(rows[0].warnings) > 5
    report = dataclasses.replace(QUIET, rows=rows, lambda_flatness=flatness)
    kinds = [one.kind for one in diagnose(report)]
    assert sorted(kinds) == sorted(
        ["throttled", "unstable", "unstable", "λ-dependent latency", "enqueue-bound", "fallback"]
    )
    assert any("fell from 3000 to 2000 MHz" in one.evidence for one in diagnose(report))
    left = undiagnosed(report)  # none but what is no trouble of latency
    assert all(text.startswith("standard_accuracy") for text in left) and left


def test_every_unstable_row_is_named_by_a_diagnosis():
    """Whatever makes a row unstable (state.py, statistics.py) is known here."""
    for cv, spans in [
        (0.001, (span(3000.0), span(2000.0))),
        (0.001, (span(3000.0, ("software power cap",)),)),
        (0.3, (span(3000.0),)),
    ]:
        found, troubles = state_of(spans, on_gpu=False)
        samples = LatencyMs.from_ns(np.array([1e6 * (1 - cv), 1e6 * (1 + cv)], dtype=np.int64))
        status = "ok" if samples.stable and not troubles else "unstable"
        row = row_of(latency_ms=samples, state=found, status=status, warnings=troubles)
        report = dataclasses.replace(QUIET, rows=(row,))
        assert status == "unstable"
        assert [one.where for one in diagnose(report)] == [f"{row.artifact}, batch 1"]


def test_other_warnings_stay_and_are_grouped_by_what_they_say():
    memory = ("memory_mb: no /proc here",)
    report = change(QUIET, everywhere, warnings=memory)
    assert undiagnosed(report) == (f"{memory[0]} (the worst of {len(QUIET.rows)} rows)",)
    rows = (row_of(warnings=("p99: 9 samples",)), row_of(warnings=("p99: 40 samples", "other")))
    left = undiagnosed(dataclasses.replace(QUIET, rows=rows))
    assert left == ("p99: 40 samples (the worst of 2 rows)", "other")


def test_a_warning_is_covered_only_in_the_file_that_is_diagnosed():
    """A row that says what no figure of its own shows keeps its warning."""
    text = "λ changes the latency by 4.0% (p=0.002)"
    report = change(of_flatness(QUIET, 0.04, 0.002), everywhere, warnings=(text,))
    others = sum(1 for row in report.rows if row.artifact != HALF)
    assert undiagnosed(report) == (f"{text} (the worst of {others} rows)",)


def test_reasons_for_unknown_energy_are_warnings_only_if_it_is_known_elsewhere():
    text = "energy_mj: 3 readings of rapl in 0.1 s, 10 are needed: measure longer"
    unknown = {"energy_mj": None, "power": None, "warnings": (text,)}
    assert undiagnosed(change(QUIET, everywhere, **unknown)) == ()
    assert undiagnosed(change(QUIET, on(HALF, 16), **unknown)) != ()


def test_a_missing_graph_is_told_of_the_batch_that_it_names():
    """Remarks stand on all rows of a file."""
    remark = "cuda_graph: not captured at batch 16 (why)"
    report = change(QUIET, on(HALF), warnings=(remark,))
    assert only(report).where == f"{HALF}, batch 16" and undiagnosed(report) == ()
    alone = change(QUIET, on(HALF, 1), warnings=(remark,))
    assert diagnose(alone) == () and undiagnosed(alone)[0].startswith(remark)


def test_a_graph_that_was_not_wanted_is_a_trouble_only_where_the_device_waits():
    off = ("cuda_graph: off",)
    busy = change(QUIET, everywhere, device_ms=device_ms(0.1, 0.7, 0.1), warnings=off)
    assert diagnose(busy) == () and undiagnosed(busy)[0].startswith(off[0])
    waiting = change(QUIET, everywhere, device_ms=device_ms(0.1, 0.2, 0.1), warnings=off)
    found = only(waiting)
    assert "--no-cuda-graph" in found.evidence and "CUDA graph" in found.remedy
    assert undiagnosed(waiting) == ()


def test_throughput_without_a_graph_is_told_as_such():
    report = change(QUIET, on(HALF, 1), warnings=(f"throughput_ips: {GRAPH}",))
    assert "no CUDA graph for img/s" in only(report).evidence and undiagnosed(report) == ()


def beside(lam, flagged):
    return PrecisionDrop(
        artifact=HALF, fp32_artifact="other.onnx", format="onnx", backend="onnxruntime-cpu",
        precision="int8", width=0.5, lam=lam, pinned=False, num_samples=500,
        standard_accuracy=None, robust_accuracy={}, reason=None,
        masking=Check(name="quantised gradients", flagged=flagged, evidence=f"{lam} of it"),
    )  # fmt: skip


def test_masked_gradients_are_a_trouble_of_the_file_once_for_all_lambdas():
    some = (beside(0.0, False), beside(0.3, True), beside(1.0, True), beside(0.5, None))
    found = only(dataclasses.replace(QUIET, precisions=some))
    assert found.kind == "masked gradients" and found.where == f"{HALF}, batch 1 and 16"
    assert found.evidence.startswith("λ=0.3: 0.3 of it") and "Square" in found.remedy
    quiet = dataclasses.replace(QUIET, precisions=(some[0], some[3]))
    assert diagnose(quiet) == ()
