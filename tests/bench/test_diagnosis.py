from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.bench.diagnosis import diagnose, listed, undiagnosed
from oat_edge.device.jetson import Jetson
from oat_edge.runtime.trt import WEAK
from tests.bench.made_up import (
    change,
    device_ms,
    fail,
    latency,
    make_report,
    state,
)


def everywhere(row):
    return True


def on(file, batch=None):
    return lambda row: row.artifact == file and batch in (None, row.batch)


def with_environment(report, **facts):
    return dataclasses.replace(report, environment=dataclasses.replace(report.environment, **facts))


def with_device(report, **facts):
    device = dataclasses.replace(report.environment.device, **facts)
    return with_environment(report, device=device)


def only(report):
    (one,) = diagnose(report)
    return one


HALF = "w0.50-fp32.onnx"


GRAPH = "cuda_graph: not captured (an op is in the way)"


def of_flatness(report, spread, p_value):
    flats = [
        dataclasses.replace(flat, max_relative_spread=spread, p_value=p_value)
        if (flat.artifact, flat.batch) == (HALF, 16)
        else flat
        for flat in report.lambda_flatness
    ]
    return dataclasses.replace(report, lambda_flatness=tuple(flats))


def with_nodes(report, **nodes):
    return dataclasses.replace(report, settings={**report.settings, "nodes": {HALF: nodes}})


QUIET = make_report()


# A trouble, its kind, and what its evidence must tell.
TROUBLES = {
    "failed": (
        fail(QUIET, on(HALF, 16), "its process was ended by SIGABRT"), "failed", "SIGABRT",
    ),
    "cv": (
        change(QUIET, on(HALF, 16), latency_ms=latency(cv=0.031), status="unstable"),
        "unstable", "CV 3.1 %",
    ),
    "one sample": (
        change(QUIET, on(HALF, 16), latency_ms=latency(cv=None, n=1), status="unstable"),
        "unstable", "single request",
    ),
    "throttled": (
        change(QUIET, on(HALF, 16), state=state(["software thermal slowdown"], 97.4)),
        "throttled", "software thermal slowdown; 97 °C",
    ),
    "h2d": (
        change(QUIET, on(HALF, 16), device_ms=device_ms(0.5, 0.5, 0.01)),
        "transfer-bound", "copying in takes 0.500 ms, computing 0.500 ms",
    ),
    "d2h": (
        change(QUIET, on(HALF, 16), device_ms=device_ms(0.01, 0.48, 0.5)),
        "transfer-bound", "copying out takes 0.500 ms",
    ),
    "enqueue": (
        change(QUIET, on(HALF, 16), device_ms=device_ms(0.04, 0.5, 0.05)),
        "enqueue-bound", "the host takes 0.410 ms, computing 0.500 ms",
    ),
    "no graph": (
        change(QUIET, on(HALF, 16), warnings=(GRAPH,)), "enqueue-bound", "an op is in the way",
    ),
    "emulated": (
        change(QUIET, on(HALF, 16), precision="fp16-emulated"), "fallback", "fp16 is computed in",
    ),
    "weak": (change(QUIET, on(HALF, 16), warnings=(WEAK,)), "fallback", "weak"),
    "λ": (of_flatness(QUIET, 0.04, 0.002), "λ-dependent latency", "differ by 4.0 % (p = 0.002)"),
}  # fmt: skip


def test_a_quiet_report_has_no_trouble():
    assert diagnose(QUIET) == () and undiagnosed(QUIET) == ()
    # A GPU that computes most of the time, all of whose nodes are its own.
    gpu = change(QUIET, everywhere, device_ms=device_ms(0.1, 0.7, 0.1))
    assert diagnose(with_nodes(gpu, CUDAExecutionProvider=12)) == ()


@pytest.mark.parametrize("name", TROUBLES)
def test_one_trouble_is_one_diagnosis_with_its_place_figure_and_remedy(name):
    report, kind, evidence = TROUBLES[name]
    found = only(report)
    assert found.kind == kind and evidence in found.evidence and found.remedy
    assert found.where == f"{HALF}, batch 16"
    assert undiagnosed(report) == ()
    assert "\n" not in str(found)


def test_nodes_elsewhere_are_told_of_the_whole_file():
    found = only(with_nodes(QUIET, CUDAExecutionProvider=9, CPUExecutionProvider=3))
    assert found.kind == "fallback" and "3 nodes in CPUExecutionProvider" in found.evidence
    assert found.where == f"{HALF}, batch 1 and 16"


@pytest.mark.parametrize(("load", "busy"), [(4.0, False), (4.1, True), (None, False)])
def test_busy_is_a_load_above_half_the_cores(load, busy):
    average = None if load is None else (load, 0.0, 0.0)
    found = diagnose(with_environment(QUIET, load_average=average))
    assert [one.kind for one in found] == ["busy"] * busy
    assert all("4.1 on 8 cores" in one.evidence for one in found)


def test_the_load_of_a_recorded_machine_is_not_this_ones():
    report = with_environment(QUIET, load_average=(99.0, 9.0, 9.0), recorded_from="a tree")
    assert diagnose(report) == ()


@given(
    h2d=st.floats(1e-4, 10), compute=st.floats(1e-4, 10), d2h=st.floats(1e-4, 10),
    host=st.floats(0, 10),
)  # fmt: skip
def test_where_a_request_waits_follows_from_its_medians(h2d, compute, d2h, host):
    """Transfer: a copy of as long as computing. Enqueue: the host's part of 0.8 of it."""
    total = h2d + compute + d2h + host
    report = change(
        QUIET, everywhere, latency_ms=latency(total), device_ms=device_ms(h2d, compute, d2h)
    )
    kinds = {one.kind for one in diagnose(report)}
    assert ("transfer-bound" in kinds) == (max(h2d, d2h) >= compute)
    if abs(host - 0.8 * compute) > 1e-9:
        assert ("enqueue-bound" in kinds) == (host >= 0.8 * compute)


def test_flatness_is_judged_as_the_report_does():
    """Large but chance, and sure but small, are no trouble."""
    assert diagnose(of_flatness(QUIET, 0.4, 0.24)) == ()
    assert diagnose(of_flatness(QUIET, 0.019, 0.001)) == ()


def test_the_same_trouble_of_many_measurements_is_one_line_with_the_worst_figure():
    cells = dict.fromkeys((row.artifact, row.batch) for row in QUIET.rows)
    cvs = {cell: percent / 100 for percent, cell in enumerate(cells, start=3)}
    rows = []
    for row in QUIET.rows:
        cv = cvs[row.artifact, row.batch]
        text = f"unstable: CV {cv:.1%} is above 2.5%; stop other programs"
        facts = {"latency_ms": latency(cv=cv), "status": "unstable", "warnings": (text,)}
        rows.append(dataclasses.replace(row, **facts))
    report = dataclasses.replace(QUIET, rows=tuple(rows))
    found = only(report)
    assert (
        f"CV {100 * max(cvs.values()):.3g} %" in found.evidence
        and "(the worst of 8)" in found.evidence
    )
    assert found.where == "all 4 files, batch 1 and 16" and undiagnosed(report) == ()


@given(st.lists(st.floats(0.03, 500), min_size=8, max_size=8))
def test_unstable_is_one_line_however_large_the_figures_are(cvs):
    cells = dict.fromkeys((row.artifact, row.batch) for row in QUIET.rows)
    cv_of = dict(zip(cells, cvs, strict=True))
    rows = (
        dataclasses.replace(row, latency_ms=latency(cv=cv_of[row.artifact, row.batch]))
        for row in QUIET.rows
    )
    found = only(dataclasses.replace(QUIET, rows=tuple(rows)))
    worst = float(found.evidence.split()[1].replace(",", ""))
    assert worst == pytest.approx(100 * max(cvs), rel=5e-3)


def test_places_are_condensed_and_say_if_not_all_of_them_are_meant():
    def where(which):
        return only(change(QUIET, which, latency_ms=latency(cv=0.5), status="unstable")).where

    assert where(on(HALF)) == f"{HALF}, batch 1 and 16"
    assert where(lambda row: row.batch == 1) == "all 4 files, batch 1"
    assert where(lambda row: row.width == 0.5) == f"{HALF} and 1 more, batch 1 and 16"
    ragged = lambda row: row.width == 0.5 and (row.batch == 1 or row.artifact == HALF)  # noqa: E731
    assert where(ragged) == f"{HALF} and 1 more, batch 1 and 16 (3 of 4)"


@given(st.lists(st.integers(1, 99), min_size=1, max_size=5))
def test_listed_batches_are_all_there(batches):
    assert listed(batches).replace(" and ", ", ").split(", ") == list(map(str, batches))


def test_different_reasons_of_failure_are_different_lines_with_fitting_remedies():
    full = fail(QUIET, on(HALF, 1), "cuMemAlloc failed (out of memory, 2): close others")
    slow = fail(full, on(HALF, 16), "it said nothing for 600 s and was ended")
    found = diagnose(slow)
    assert [one.kind for one in found] == ["failed", "failed"]
    assert "smaller batches" in found[0].remedy and "--timeout" in found[1].remedy
    assert all("--resume" in one.remedy for one in found)


def test_memory_and_accuracy_fail_without_the_row():
    memory, accuracy = "its process was ended by SIGKILL", "measuring failed: a bug"
    report = change(QUIET, on(HALF, 16), memory_mb=None, warnings=(f"memory_mb: {memory}",))
    report = change(report, on("w1.00-fp32.onnx"), warnings=(f"standard_accuracy: {accuracy}",))
    failures = {f"memory {HALF} batch 16": memory, "accuracy w1.00-fp32.onnx": accuracy}
    report = dataclasses.replace(report, failures=failures)
    found = diagnose(report)
    assert [(one.where, one.evidence) for one in found] == [
        (f"{HALF}, batch 16", f"memory: {memory}"),
        ("w1.00-fp32.onnx, batch 1 and 16", f"accuracy: {accuracy}"),
    ]
    assert undiagnosed(report) == ()


def test_what_fails_twice_for_one_reason_is_one_line():
    report = fail(QUIET, on(HALF, 16), "no device")
    failures = {f"{kind} {HALF} batch 16": "no device" for kind in ("latency", "memory")}
    assert only(dataclasses.replace(report, failures=failures)).evidence == "no device"


def test_the_gravest_come_first():
    report = change(TROUBLES["failed"][0], on(HALF, 1), latency_ms=latency(cv=0.9))
    report = change(report, on("w1.00-fp32.onnx", 1), state=state(["hardware slowdown"]))
    report = with_environment(report, load_average=(9.0, 9.0, 9.0))
    kinds = [one.kind for one in diagnose(report)]
    assert kinds == ["failed", "throttled", "unstable", "busy"]


def test_clocks_are_to_be_fixed_only_where_that_can_be_done_and_was_not():
    shaky = change(QUIET, everywhere, latency_ms=latency(cv=0.5), status="unstable")
    assert "--lock-clocks" in only(shaky).remedy
    assert "--lock-clocks" not in only(with_environment(shaky, power_mode=None)).remedy
    held = {**shaky.settings, "held": {"set": {"clocks": "CPU governor performance"}}}
    assert "--lock-clocks" not in only(dataclasses.replace(shaky, settings=held)).remedy
    for locked in (True, False, None):
        facts = dict.fromkeys(field.name for field in dataclasses.fields(Jetson))
        jetson = Jetson(**{**facts, "clocks_locked": locked, "warnings": ()})
        remedy = only(with_environment(shaky, jetson=jetson)).remedy
        assert ("--lock-clocks" in remedy) == (locked is not True)
    assert "--lock-clocks" in only(with_device(shaky, kind="cuda")).remedy


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("software power cap", "power limit"),
        ("under-voltage (oc1), 3 times", "supply"),
        ("hardware thermal slowdown", "cool"),
        ("CPU too hot (core_throttle_count), 12 times", "cool"),
    ],
)
def test_the_remedy_of_throttling_fits_its_reason(reason, remedy):
    assert remedy in only(change(QUIET, on(HALF, 1), state=state([reason]))).remedy
