from __future__ import annotations

import re
import tempfile

import numpy as np
import onnx
import onnxruntime
import pytest

from oat_edge.errors import InputError
from oat_edge.runtime import open_artifact
from oat_edge.runtime.ort_profile import layer_times, profile_here, profile_in_child
from oat_edge.runtime.ort_session import SessionConfig

IMAGES = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
LAMBDAS = np.array([0.0, 0.3, 1.0], dtype=np.float32)


def steady(name):
    """Without the number that ONNX Runtime counts on for each graph that it optimises."""
    return re.sub(r"_token_\d+", "", name)


@pytest.fixture(scope="module")
def runner(tiny_bundle):
    artifact = tiny_bundle.select(format="onnx", width=0.5)
    with open_artifact(tiny_bundle, artifact, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def optimised(runner, tmp_path_factory):
    """The graph that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path_factory.mktemp("graph") / "optimised.onnx")
    onnxruntime.InferenceSession(str(runner.path), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath).graph


def test_every_node_that_runs_is_there_once(runner, optimised):
    layers = runner.profile(IMAGES, LAMBDAS, runs=4)
    found = sorted((steady(layer.name), layer.kind) for layer in layers)
    assert found == sorted((steady(node.name), node.op_type) for node in optimised.node)
    assert all(layer.ms >= 0 for layer in layers) and sum(layer.ms for layer in layers) > 0


def test_layers_come_in_the_order_in_which_they_run(runner, optimised):
    place = {layer.name: i for i, layer in enumerate(runner.profile(IMAGES, LAMBDAS, runs=1))}
    # What ONNX Runtime adds itself has another name in each session.
    nodes = [node for node in optimised.node if not node.op_type.startswith("Reorder")]
    made_by = {name: node.name for node in nodes for name in node.output}
    pairs = [
        (place[made_by[name]], place[node.name])
        for node in nodes
        for name in node.input
        if name in made_by
    ]
    assert len(pairs) > 30 and all(earlier < later for earlier, later in pairs)


def test_no_trace_is_left_and_the_runner_still_runs(runner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = runner.infer(IMAGES, LAMBDAS)
    runner.profile(IMAGES, LAMBDAS, runs=1)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(runner.infer(IMAGES, LAMBDAS), before)


def test_a_pinned_file_has_layers_too(tiny_bundle):
    artifact = tiny_bundle.select(format="onnx", width=0.5, pinned_lambda=1.0)
    with open_artifact(tiny_bundle, artifact, threads=1) as pinned:
        layers = pinned.profile(IMAGES, np.ones(3, dtype=np.float32), runs=1)
    assert {"Conv", "Gemm"} <= {layer.kind for layer in layers}


def test_a_bad_request_is_refused_as_by_infer(runner):
    with pytest.raises(InputError, match="image has shape"):
        runner.profile(IMAGES[:, :, :4], LAMBDAS, runs=1)
    with pytest.raises(InputError, match="runs is 0"):
        runner.profile(IMAGES, LAMBDAS, runs=0)


def test_a_process_of_its_own_finds_the_same_layers(runner):
    """The way that a GPU is looked at, on the CPU."""
    config = SessionConfig(path=runner.path, threads=1)
    layers = profile_in_child(config, {"image": IMAGES, "lambda": LAMBDAS}, runs=2)
    here = runner.profile(IMAGES, LAMBDAS, runs=2)
    found, expected = ([(steady(one.name), one.kind) for one in those] for those in (layers, here))
    assert found == expected


def test_a_failing_process_is_one_line(tmp_path):
    config = SessionConfig(path=tmp_path / "gone.onnx")
    with pytest.raises(InputError, match=r"gone\.onnx has no times of layers: .*code 1") as error:
        profile_in_child(config, {"image": IMAGES}, runs=1)
    assert "\n" not in str(error.value)


def event(name, index, start_us, dur_us, kind="Conv"):
    arguments = {"node_index": str(index), "op_name": kind}
    return {"cat": "Node", "name": name, "ts": start_us, "dur": dur_us, "args": arguments}


def test_times_are_medians_without_the_first_request():
    trace = [
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 999, "args": {}},
        event("b_kernel_time", 7, 20, 1000),
        event("_kernel_time", 2, 10, 500, "Relu"),
        event("_kernel_time", 2, 110, 30, "Relu"),
        event("_kernel_time", 2, 210, 50, "Relu"),
        event("b_kernel_time", 7, 120, 4),
        event("b_kernel_time", 7, 220, 6),
        event("b_fence_before", 7, 119, 77),
    ]
    layers = layer_times(trace, runs=2)
    assert [(layer.name, layer.kind) for layer in layers] == [("Relu 2", "Relu"), ("b", "Conv")]
    assert [layer.ms for layer in layers] == pytest.approx([0.04, 0.005])


def test_one_stalled_request_moves_no_layer():
    """The machine may hold a request up for milliseconds; the layer that it hits is not slow."""
    trace = [
        event(f"{name}_kernel_time", index, 1000 * request + index, us)
        for request in range(8)
        for index, (name, us) in enumerate((("a", 20), ("b", 30)))
    ]
    steady = layer_times(trace, runs=7)
    trace[8]["dur"] = 4000
    assert layer_times(trace, runs=7) == steady
    assert [layer.ms for layer in steady] == pytest.approx([0.02, 0.03])


def test_the_parts_of_a_request_add_up():
    """A node inside a loop runs several times per request."""
    durations = [(9, 9), (1, 2), (3, 4), (500, 5)]
    trace = [
        event("a_kernel_time", 0, 10 * request + part, us)
        for request, parts in enumerate(durations)
        for part, us in enumerate(parts)
    ]
    (layer,) = layer_times(trace, runs=3)
    assert layer.ms == pytest.approx(0.007)


def test_what_goes_wrong_in_the_library_is_one_line_of_ours(runner):
    """A request that ONNX Runtime itself refuses."""
    config = SessionConfig(path=runner.path, threads=1)
    with pytest.raises(InputError, match="has no times of layers") as error:
        profile_here(config, {"image": IMAGES[0], "lambda": LAMBDAS}, runs=1)
    assert "\n" not in str(error.value)
