from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from oat_edge.bench.profile import ArtifactProfile, LayerShare
from oat_edge.bench.run import bench_bundle
from oat_edge.bench.statistics import DeviceMs, LatencyMs
from oat_edge.bench.table import cost_table, figures
from oat_edge.cli.layers import cut
from oat_edge.cli.summary import print_report
from oat_edge.evaluation.transfer import largest_gain
from tests.bench.conftest import QUICKEST
from tests.bench.made_up import (
    change,
    latency,
    make_report,
)


@pytest.fixture(scope="module")
def report(tiny_bundle):
    return bench_bundle(tiny_bundle, QUICKEST, widths=(1.0,), lambdas=(0.0, 0.3, 1.0))[0]


def printed(report, width=1000):
    file = io.StringIO()
    print_report(report, Console(file=file, width=width, highlight=False, markup=False))
    return file.getvalue()


def test_transfer_line_is_the_largest_gain_of_the_grids(report):
    gain, grid, target, source = largest_gain(report.transfer)
    (line,) = [line for line in printed(report).splitlines() if line.startswith("Transfer: ")]
    if gain > 0:
        assert f"at most {100 * gain:.1f} points ({target} ← {source}, {grid.attack})" in line
    else:
        assert "nowhere" in line
    together = max(row.robust_accuracy["pgd20"] - row.worst for row in report.knob_rows)
    told = f"those of all together by up to {100 * together:.1f}" in line
    assert told == (together > 0) and together >= gain


def test_a_gain_is_told_with_its_target_and_source(report):
    (grid,) = report.transfer
    shares = [list(row) for row in grid.robust_accuracy]
    here, there = grid.targets[0], grid.sources[-1]
    shares = [[1.0] * len(row) for row in shares]
    shares[0][-1] = 0.875
    made_up = dataclasses.replace(grid, robust_accuracy=tuple(map(tuple, shares)))
    text = printed(dataclasses.replace(report, transfer=(made_up,)))
    assert f"lower an attack's RA by at most 12.5 points ({here} ← {there}, pgd20)" in text


def test_several_attacks_on_a_point_are_not_taken_for_transfer(report):
    rows = tuple(
        dataclasses.replace(
            row, robust_accuracy={**row.robust_accuracy, "square": 0.0, "worst": 0.0}
        )
        for row in report.rows
    )
    assert "together" not in printed(dataclasses.replace(report, rows=rows))


def test_without_grids_transfer_is_not_spoken_of(report):
    rows = tuple(
        dataclasses.replace(
            row,
            robust_accuracy={k: v for k, v in row.robust_accuracy.items() if k != "transfer"},
        )
        for row in report.rows
    )
    text = printed(dataclasses.replace(report, rows=rows, transfer=()))
    assert "ransfer" not in text and "worst case over pgd20, an upper bound" in text


def test_tables_fit_a_terminal_and_are_whole(report):
    lines = printed(report, width=100).splitlines()
    head, *_ = (line for line in lines if line.startswith("Width"))
    assert all(name in head for name in cost_table(report).headers)
    table = lines[lines.index(head) :]
    for row in report.rows:
        assert any(
            figures(row.latency_ms.p50) in line and row.status in line and str(row.batch) in line
            for line in table
        )
    assert all(len(line) <= 100 and "…" not in line for line in lines)


@given(text=st.text("abc/", max_size=200), most=st.integers(3, 80))
def test_long_names_are_cut_in_the_middle(text, most):
    short = cut(text, most)
    if len(text) <= most:
        assert short == text
    else:
        head, tail = short.split("…")
        assert len(short) == most and head and tail
        assert text.startswith(head) and text.endswith(tail)


def with_profile(report, name):
    layers = tuple(
        LayerShare(name=f"{name}{i}", kind="Conv" * 20, ms=float(i), share=i / 66)
        for i in range(12)
    )
    profiles = tuple(
        ArtifactProfile(artifact=file, batch=batch, backend="b", layers=layers, total_ms=66.0)
        for file in ("a.onnx", "b.onnx")
        for batch in (16, 1)
    )
    return dataclasses.replace(report, profile=profiles)


def test_slowest_layers_of_the_largest_batch_fit_a_terminal(report):
    text = printed(with_profile(report, "model/" + "block/" * 20), width=100)
    tables = text[text.index("a.onnx, batch 16") :]
    assert (
        "batch 1: the slowest" not in tables
        and "b.onnx, batch 16: the slowest of 12 layers" in tables
    )
    lines = [line for line in tables.splitlines() if line.startswith("model/")]
    assert len(lines) == 20 and all(len(line) <= 100 and "…" in line for line in lines)
    assert [line.split()[-2:] for line in lines[:2]] == [["11.0", "16.7"], ["10.0", "15.2"]]


def test_times_on_the_device_are_told_once_per_file(report):
    parts = [LatencyMs.from_ns(np.full(3, ns)) for ns in (10_000, 500_000, 2_000)]
    times = DeviceMs(h2d=parts[0], compute=parts[1], d2h=parts[2])
    rows = tuple(dataclasses.replace(row, device_ms=times) for row in report.rows)
    text = printed(dataclasses.replace(report, rows=rows))
    assert "on the device, w1.00-fp32.onnx: 0.0100 + 0.500 + 0.0020 (batch 1)" in text.splitlines()
    assert "on the device" not in printed(report)


def test_a_gpu_is_named_with_its_driver_and_its_host(report):
    device = dataclasses.replace(
        report.environment.device, kind="cuda", model="A GPU", host="A CPU",
        compute_capability="8.7", cuda="12.6", gpu_memory_mb=8e3,
    )  # fmt: skip
    environment = dataclasses.replace(report.environment, device=device, driver="540.4")
    first = printed(dataclasses.replace(report, environment=environment)).splitlines()[0]
    assert first.startswith("A GPU, sm 8.7, CUDA 12.6, driver 540.4; A CPU, ")


def test_emulation_and_kinds_are_explained(report):
    half = tuple(
        dataclasses.replace(row, precision="fp16-emulated", artifact=f"half-{row.artifact}")
        for row in report.rows
    )
    both = dataclasses.replace(report, rows=(*report.rows, *half))
    text = printed(both)
    assert "onnx fp16~" in text and "~: computed in float32" in text
    assert "λ as an input costs, width 1 onnx fp32: " in text
    assert "~: computed" not in printed(report)
    assert "λ as an input costs, width 1: " in printed(report)


def test_the_line_above_the_layers_is_whole_and_tells_them_from_the_latency(report):
    name, batch = report.rows[0].artifact, report.rows[0].batch
    layers = (LayerShare(name="a", kind="Conv", ms=1.21, share=1.0),)
    profile = ArtifactProfile(artifact=name, batch=batch, backend="b", layers=layers, total_ms=1.21)
    lines = printed(dataclasses.replace(report, profile=(profile,))).splitlines()
    (title,) = [line for line in lines if "the slowest of" in line]
    p50 = figures(report.rows[0].latency_ms.p50)
    assert title == (
        f"{name}, batch {batch}: the slowest of 1 layers; "
        f"profiled, which slows it: 1.21 ms in all; latency p50 {p50} ms"
    )
    assert lines[lines.index(title) + 1].split() == ["Layer", "Kind", "ms", "Share", "%"]


def demo_like():
    """As many rows as the demo has."""
    return make_report(widths=(0.5, 0.75, 1.0), lambdas=(0.0, 0.1, 0.2, 0.3, 0.4, 1.0))


def test_the_demo_fits_on_one_screen():
    lines = printed(demo_like(), width=100).splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 100
    troubled = change(demo_like(), lambda row: True, latency_ms=latency(cv=0.5), status="unstable")
    assert len(printed(troubled, width=100).splitlines()) <= 45
