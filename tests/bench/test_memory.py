from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from oat_edge.bench import memory
from oat_edge.bench.memory import measure_memory, resident_mb
from oat_edge.bundle import Artifact, Bundle, add_artifacts
from oat_edge.files import sha256_file
from oat_edge.runtime.child import ChildFailedError

WEIGHTS_MB = 64.0


@pytest.fixture
def heavy(bundle, tmp_path):
    """A network whose only cost is 64 MB of weights: logits = shape of image @ W, first column."""
    rows = round(WEIGHTS_MB * 1e6 / 4 / 16)
    weight = np.random.default_rng(0).random((16, rows), dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "W"], ["scores"]),
            helper.make_node("Slice", ["scores", "zero", "three", "one"], ["first"]),
            helper.make_node("Reshape", ["lambda", "column"], ["lam"]),
            helper.make_node("Add", ["first", "lam"], ["logits"]),
        ],
        "heavy",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 4, 4]),
            helper.make_tensor_value_info("lambda", TensorProto.FLOAT, ["N"]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [
            numpy_helper.from_array(weight, "W"),
            numpy_helper.from_array(np.array([0], dtype=np.int64), "zero"),
            numpy_helper.from_array(np.array([3], dtype=np.int64), "three"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "one"),
            numpy_helper.from_array(np.array([-1, 1], dtype=np.int64), "column"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "heavy.onnx")
    digest = sha256_file(tmp_path / "heavy.onnx")
    artifact = Artifact(file="heavy.onnx", sha256=digest, format="onnx", width=1.0)
    add_artifacts(tmp_path, [artifact], run="heavy", checkpoint_sha256="c" * 64, spec=bundle.spec)
    return Bundle.open(tmp_path), artifact


def test_weights_and_activations_are_found_again(heavy):
    opened, artifact = heavy
    cost = measure_memory(opened, artifact, batches=(1, 8), threads=1)
    assert cost.reason is None
    assert cost.gpu_added_mb is cost.gpu_reason is None  # a CPU has no other memory
    # Weights once at least; a loader may hold the file's bytes and a packed copy besides.
    assert WEIGHTS_MB * 0.9 <= cost.added_mb[1] <= WEIGHTS_MB * 5
    activations_mb = WEIGHTS_MB / 16 * 8  # (8, rows) float32
    assert cost.added_mb[8] - cost.added_mb[1] >= 0.7 * activations_mb


def test_small_networks_cost_less_than_this_process_holds(bundle):
    artifact = bundle.select(format="onnx", width=0.5, pinned_lambda=0.3)
    cost = measure_memory(bundle, artifact, batches=(1,), threads=1)
    assert cost.added_mb[1] < 0.5 * resident_mb()


def test_without_proc_it_is_none_with_a_reason(bundle, tmp_path):
    artifact = bundle.select(format="onnx", width=1.0)
    cost = measure_memory(bundle, artifact, batches=(1, 4), sysroot=tmp_path)
    assert cost.added_mb == {1: None, 4: None} and "/proc" in cost.reason


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_failing_child_is_no_figure_but_an_error_with_its_last_line(bundle, device):
    missing = dataclasses.replace(bundle.select(format="onnx", width=1.0), file="gone.onnx")
    with pytest.raises(ChildFailedError, match="StopIteration"):
        measure_memory(bundle, missing, batches=(1,), device=device)


def test_a_child_that_takes_too_long_is_ended(bundle):
    with pytest.raises(ChildFailedError, match=r"over 0\.01 s"):
        measure_memory(
            bundle, bundle.select(format="onnx", width=1.0), batches=(1,), timeout_s=0.01
        )


def test_resident_memory_is_read_in_kib_and_given_in_mb(tmp_path):
    assert resident_mb(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("VmPeak:\t  9 kB\nVmRSS:\t   125000 kB\n")
    assert resident_mb(tmp_path) == 128.0


@pytest.mark.gpu
def test_weights_are_found_again_in_the_memory_of_the_gpu(heavy, needs_gpu):
    opened, artifact = heavy
    cost = measure_memory(opened, artifact, batches=(1,), device="cuda")
    assert cost.gpu_reason is None and cost.gpu_added_mb[1] >= 0.9 * WEIGHTS_MB


@pytest.mark.parametrize(
    ("gpu_mb", "added", "disturbed"),
    [
        ([500.0, 600.0, 650.0], {1: 100.0, 4: 150.0}, False),
        ([500.0, 600.0, 450.0], {1: 100.0, 4: None}, True),
        ([500.0, 500.0, 500.0], {1: 0.0, 4: 0.0}, False),
    ],
)
def test_less_gpu_memory_than_before_is_no_figure(bundle, monkeypatch, gpu_mb, added, disturbed):
    """What a child would find while another process frees memory."""
    found = {"resident_mb": [1.0, 2.0, 3.0], "gpu_mb": gpu_mb, "gpu_reason": None}
    monkeypatch.setattr(memory, "call_child", lambda *_, **__: found)
    artifact = bundle.select(format="onnx", width=1.0)
    cost = measure_memory(bundle, artifact, batches=(1, 4), device="cuda")
    assert cost.gpu_added_mb == added and cost.reason is None
    assert (cost.gpu_reason is not None) == disturbed
    assert not disturbed or "another process" in cost.gpu_reason
