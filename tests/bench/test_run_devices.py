"""Benches by device, by format and precision, and of layers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from oat_edge.bench.captions import transfer_caption
from oat_edge.bench.run import bench_bundle
from oat_edge.device.system import System
from oat_edge.errors import DependencyError
from tests.bench.conftest import QUICKEST

pytestmark = pytest.mark.usefixtures("frozen_heap")


def test_what_is_no_jetson_is_refused_with_what_was_found(bundle, tmp_path):
    config = dataclasses.replace(QUICKEST, device="jetson")
    with pytest.raises(DependencyError, match=r"is none \(detected: .*NVIDIA") as error:
        bench_bundle(
            bundle, config, widths=(1.0,), lambdas=(0.0,), system=System(tmp_path / "nothing")
        )
    assert error.value.exit_code == 3 and "\n" not in str(error.value)


def test_the_cpu_of_a_jetson_is_measured_and_the_board_described(bundle):
    """The machine is this one; what it is said to be comes from a written tree, and is marked."""
    config = dataclasses.replace(QUICKEST, device="jetson", processor="cpu")
    orin = System(Path(__file__).parents[1] / "device/trees/orin-nano")
    report, _ = bench_bundle(bundle, config, widths=(1.0,), lambdas=(0.0,), system=orin)
    (row,) = report.rows
    assert row.backend == "onnxruntime-cpu" and row.latency_ms.p50 > 0
    environment = report.environment
    assert environment.jetson is not None and "Orin Nano" in environment.device.board
    assert environment.recorded_from == str(orin.root)
    assert any("recorded" in text for text in environment.warnings)


def test_without_a_gpu_cuda_is_refused_before_anything_runs(bundle, no_gpu):
    config, calls = dataclasses.replace(QUICKEST, device="cuda"), []
    with pytest.raises(DependencyError, match="GPU") as error:
        bench_bundle(
            bundle, config, widths=(1.0,), lambdas=(0.0,), progress=lambda *call: calls.append(call)
        )
    assert error.value.exit_code == 3 and "\n" not in str(error.value) and calls == []


def test_formats_and_precisions_can_be_chosen_and_are_told_apart(both_kinds):
    config = dataclasses.replace(QUICKEST, precisions=("fp32", "fp16"))
    report, _ = bench_bundle(both_kinds, config, widths=(0.5,), lambdas=(0.0, 1.0))
    assert set(report.kinds) == {("onnx", "fp32"), ("onnx", "fp16-emulated")}
    costs = {cost.precision: cost for cost in report.lambda_cost}
    assert costs["fp32"].ratio is not None and costs["fp32"].artifact == "w0.50-fp32.onnx"
    half = costs["fp16-emulated"]
    assert (half.ratio, half.artifact) == (None, "w0.50-fp16.onnx")
    assert half.reason.endswith("--format onnx --precision fp16 --pin-lambda 0.3")
    assert any(text.endswith("grids are of w0.50-fp32.onnx") for text in report.warnings)
    assert report.transfer_artifacts == ("w0.50-fp32.onnx",)
    for grid in report.transfer:  # on a CPU half precision is no more than emulated
        assert "onnxruntime-cpu fp32" in transfer_caption(report, grid)
        assert "fp16" not in transfer_caption(report, grid)
        for target, shares in zip(grid.targets, grid.robust_accuracy, strict=True):
            (row,) = [row for row in report.transfer_rows if row.lam == target.lam]
            own = dict(zip(grid.sources, shares, strict=True))[target]
            assert row.robust_accuracy[grid.attack] == own
    usual, _ = bench_bundle(both_kinds, QUICKEST, widths=(0.5,), lambdas=(0.0, 1.0))
    assert usual.kinds == (("onnx", "fp32"),)
    assert not any("grids are of" in text for text in usual.warnings)


def test_profile_holds_the_lambda_input_files_at_both_ends(bundle):
    config = dataclasses.replace(QUICKEST, batches=(1, 2, 5), profile=True, profile_runs=3)
    report, _ = bench_bundle(bundle, config, widths=(0.5,), lambdas=(0.0,))
    found = [(one.artifact, one.batch, one.backend) for one in report.profile]
    assert found == [("w0.50-fp32.onnx", batch, "onnxruntime-cpu") for batch in (1, 5)]
    for one in report.profile:
        assert {layer.kind for layer in one.layers} >= {"MatMul", "Add", "Mul"}
        assert one.total_ms == pytest.approx(sum(layer.ms for layer in one.layers))
        assert sum(layer.share for layer in one.layers) == pytest.approx(1.0)


def test_without_being_asked_no_layers_are_looked_at(benched):
    assert benched.report.profile == ()


def test_on_a_cpu_nothing_is_said_of_a_device_clock_or_memory(benched):
    for row in benched.report.rows:
        assert row.device_ms is row.gpu_memory_mb is None
        assert not any("device_ms" in text or "gpu_memory" in text for text in row.warnings)
    assert "device_ms" not in benched.report.settings
    assert all(one.device_ms is None for one in benched.samples)


def test_a_failing_profile_is_a_warning_and_costs_no_other_figure(bundle, fault):
    config = dataclasses.replace(QUICKEST, profile=True, profile_runs=1)
    fault(**{"in": "layers", "do": "profiles", "how": "input"})
    report, _ = bench_bundle(bundle, config, widths=(0.5,), lambdas=(0.0,))
    assert report.profile == () and len(report.rows) == 2
    assert all(row.latency_ms is not None and row.status != "failed" for row in report.rows)
    (told,) = [text for text in report.warnings if text.startswith("profile: ")]
    assert told == "profile: w0.50-fp32.onnx: no place for the trace"


def test_what_throughput_runners_remark_is_on_the_rows(bundle, fault):
    fault(**{"in": "network", "do": "", "how": "remark", "remark": "cuda_graph: not captured"})
    report, _ = bench_bundle(bundle, QUICKEST, widths=(1.0,), lambdas=(0.0,))
    (row,) = report.rows
    assert "throughput_ips: cuda_graph: not captured" in row.warnings


@pytest.mark.gpu
def test_a_gpu_is_measured_with_all_that_only_it_has(tiny_bundle, needs_gpu):
    config = dataclasses.replace(QUICKEST, device="cuda", formats=("onnx",), batches=(1, 4))
    report, _ = bench_bundle(tiny_bundle, config, widths=(1.0,), lambdas=(0.0, 1.0))
    device = report.environment.device
    assert device.kind == "cuda" and device.compute_capability and device.gpu_memory_mb > 0
    assert report.settings["throughput_workers"] == 1
    for nodes in report.settings["nodes"].values():
        assert set(nodes) == {"CUDAExecutionProvider"}
    for row in report.rows:
        assert row.backend == "onnxruntime-cuda" and row.gpu_memory_mb > 0
        assert row.device_ms is None and any("device_ms:" in text for text in row.warnings)
        assert not any("cuda_graph" in text for text in row.warnings)
        assert row.worst is not None
