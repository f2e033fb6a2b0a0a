"""A fault in one cell costs that cell: real processes that are killed, hang, or raise."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from oat_edge.bench import cells, memory, side_by_side
from oat_edge.bench.cells import plan
from oat_edge.bench.results import Results
from oat_edge.bench.run import bench_bundle
from oat_edge.errors import BuildError, DependencyError, FallbackError, UnstableError
from oat_edge.runtime.child import ChildFailedError, call_child
from tests.bench.conftest import QUICKEST

pytestmark = pytest.mark.usefixtures("frozen_heap")

CONFIG = dataclasses.replace(QUICKEST, batches=(1, 2))
STRUCK = ("w0.50-fp32.onnx", 2)


def bench(bundle, config=CONFIG, **options):
    told = []
    report, _ = bench_bundle(
        bundle, config, widths=(0.5, 1.0), lambdas=(0.0, 1.0), say=told.append, **options
    )
    return report, told


def by_cell(report):
    cells = {}
    for row in report.rows:
        cells.setdefault((row.artifact, row.batch), []).append(row)
    return cells


def network_fault(do, how, **more):
    file, batch = STRUCK
    return {"in": "network", "do": do, "how": how, "file": file, "batch": batch, **more}


@pytest.mark.parametrize(
    ("do", "how", "text"),
    [
        (None, "kill", "ended by SIGKILL (the system does so when memory runs out)"),
        ("warm_up", "abort", "ended by SIGABRT"),
        ("part", "bug", "ZeroDivisionError: a bug"),
        ("part", "memory", "cuMemAlloc failed"),
    ],
)
def test_a_cell_that_fails_twice_has_rows_that_say_so_and_the_others_their_figures(
    bundle, fault, do, how, text
):
    fault(**network_fault(do, how, after=1 if do == "part" else 0))
    report, told = bench(bundle)
    assert [line for line in told if "once more, alone" in line and STRUCK[0] in line]
    for cell, rows in by_cell(report).items():
        for row in rows:
            assert (row.status == "failed") == (cell == STRUCK) == (row.latency_ms is None)
            assert (row.throughput_ips is None) == (cell == STRUCK)
            assert row.standard_accuracy is not None  # of the file, whatever the batch
            assert row.pareto == (None if cell == STRUCK else row.pareto)
        if cell == STRUCK:
            assert all(any(text in line for line in row.warnings) for row in rows)
    assert all("\n" not in line for row in report.rows for line in row.warnings)


def test_a_cell_that_was_lost_beside_the_others_is_measured_alone(bundle, fault, tmp_path):
    fault(**network_fault("part", "kill", after=1, once=str(tmp_path / "struck")))
    report, told = bench(bundle)
    assert (tmp_path / "struck").exists() and any("once more, alone" in line for line in told)
    for cell, rows in by_cell(report).items():
        for row in rows:
            assert row.latency_ms.n >= 3 and row.status != "failed"
            assert any("measured alone" in line for line in row.warnings) == (cell == STRUCK)


@pytest.mark.parametrize("twice", [True, False])
def test_throughput_that_fails_costs_no_latency(bundle, fault, tmp_path, twice):
    """On a GPU it opens more runners, and so is where memory ends."""
    once = {} if twice else {"once": str(tmp_path / "struck")}
    fault(**network_fault("throughput", "memory", **once))
    report, told = bench(bundle)
    assert any("throughput w0.50-fp32.onnx batch 2: cuMemAlloc failed" in line for line in told)
    for cell, rows in by_cell(report).items():
        for row in rows:
            assert row.latency_ms is not None and row.status != "failed"
            assert not any("measured alone" in line for line in row.warnings)
            assert (row.throughput_ips is None) == (twice and cell == STRUCK)
            told_so = [line for line in row.warnings if line.startswith("throughput_ips: cuMem")]
            assert len(told_so) == (twice and cell == STRUCK)
    assert list(report.failures) == (["throughput w0.50-fp32.onnx batch 2"] if twice else [])


def test_a_fallback_ends_the_bench_wherever_it_shows(bundle, fault):
    fault(**network_fault("throughput", "fallback"))
    with pytest.raises(FallbackError):
        bench(bundle)


def test_memory_that_cannot_be_measured_is_a_failure_and_tried_again(bundle, monkeypatch, tmp_path):
    results = tmp_path / "results.jsonl"

    def too_slow(*arguments, **_):
        raise ChildFailedError("the measuring process took over 1 s")

    monkeypatch.setattr(memory, "call_child", too_slow)
    report, _ = bench(bundle, QUICKEST, results=results)
    assert len(report.failures) == 3 and all(name.startswith("memory ") for name in report.failures)
    assert all(row.memory_mb is None and row.latency_ms is not None for row in report.rows)
    monkeypatch.setattr(memory, "call_child", call_child)
    again, _ = bench(bundle, QUICKEST, results=results, resume=True)
    assert again.failures == {} and all(row.memory_mb is not None for row in again.rows)


@pytest.mark.parametrize(("how", "error"), [("kill", BuildError), ("fallback", FallbackError)])
def test_an_engine_that_cannot_be_built_is_one_line(bundle, fault, monkeypatch, how, error):
    """The builder's process is killed; the files are ONNX here, and called engines for a test."""
    monkeypatch.setattr(cells, "ENGINES", ("onnx",))
    fault(**{"in": "engine", "do": "build", "how": how, "file": "w1.00-fp32.onnx"})
    with pytest.raises(error) as raised:
        bench_bundle(bundle, QUICKEST, widths=(1.0,), lambdas=(0.0,))
    assert "\n" not in str(raised.value)
    assert how != "kill" or "building w1.00-fp32.onnx failed" in str(raised.value)


def test_a_cell_that_hangs_is_ended_in_its_time_and_not_tried_again(bundle, fault):
    fault(**network_fault("part", "hang"))
    report, told = bench(bundle, dataclasses.replace(CONFIG, timeout_s=3.0))
    (row, _) = by_cell(report)[STRUCK]
    assert row.status == "failed" and any("said nothing for 3" in line for line in row.warnings)
    assert not any("once more" in line for line in told)


def test_what_memory_does_not_hold_is_measured_in_groups(bundle, monkeypatch, tmp_path):
    class Two:
        def __init__(self, _):
            self.num = 0

        def opened(self):
            self.num += 1

        def for_another(self):
            return self.num < 2

    monkeypatch.setattr(side_by_side, "Room", Two)
    report, _ = bench(bundle, results=tmp_path / "results.jsonl")
    assert all(row.status != "failed" and row.latency_ms.n >= 3 for row in report.rows)
    assert any(text.startswith("turns: memory does not hold") for text in report.warnings)
    parts = [
        (one["file"], one["batch"]) for one in Results.peek(tmp_path / "results.jsonl").of("part")
    ]
    size = 2 * CONFIG.rounds
    groups = [set(parts[index : index + size]) for index in range(0, len(parts), size)]
    assert [len(group) for group in groups] == [2, 2, 2] and len(set().union(*groups)) == 6


def test_what_no_cell_can_mend_ends_the_bench(bundle, fault):
    fault(**network_fault(None, "fallback"))
    with pytest.raises(FallbackError, match="another device"):
        bench(bundle)


@pytest.mark.parametrize(("how", "error"), [("memory", DependencyError), ("kill", UnstableError)])
def test_if_every_cell_fails_there_is_no_report(bundle, fault, how, error):
    fault(**{"in": "network", "do": "warm_up", "how": how})
    with pytest.raises(error) as raised:
        bench_bundle(bundle, QUICKEST, widths=(1.0,), lambdas=(0.0,))
    assert "\n" not in str(raised.value)


def test_accuracy_that_fails_leaves_the_times(bundle, fault):
    fault(**{"in": "accuracy", "do": "outcomes", "how": "abort", "file": "w1.00-fp32.onnx"})
    report, _ = bench(bundle, QUICKEST)
    for row in report.rows:
        lost = row.width == 1.0
        assert (row.standard_accuracy is None) == lost and row.latency_ms is not None
        assert any("SIGABRT" in line for line in row.warnings) == lost


def test_the_plan_has_every_cell_once(bundle):
    artifacts = list(bundle.of_format("onnx"))
    cells = plan(artifacts, dataclasses.replace(CONFIG, profile=True), with_packs=True)
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    files = [artifact.file for artifact in artifacts]
    assert {(c.artifact.file, c.batch) for c in cells if c.kind == "latency"} == set(
        itertools.product(files, (1, 2))
    )
    assert [c.artifact.file for c in cells if c.kind == "accuracy"] == files
    layers = [c.artifact.file for c in cells if c.kind == "layers"]
    assert layers == [file for file in files if "lam" not in file]
    assert not any(c.kind == "accuracy" for c in plan(artifacts, CONFIG, with_packs=False))
