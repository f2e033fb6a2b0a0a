"""Engines at work: every test here needs a GPU and the library of its format."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest

from oat_edge.errors import DependencyError, FallbackError, InputError
from oat_edge.exporters.half import to_half
from oat_edge.exporters.to_tensorrt import build_engine
from oat_edge.runtime import cuda, open_runner, trt_api
from oat_edge.runtime.recipe import LIBRARIES, Recipe
from oat_edge.runtime.runner import RunnerIO
from oat_edge.runtime.trt import TrtRunner
from oat_edge.runtime.trt_session import MAX_GRAPHS
from tests.gpus import on_gpu

IO = RunnerIO(image_shape=(1, 8, 8), num_classes=10, lambdas=(0.0, 0.1, 0.2, 0.3, 0.4, 1.0))
LOW, USUAL, HIGH = 2, 4, 12  # more batch sizes than there are graphs
# fp32 differs by the order of sums; half precision by its 11 bits, over a dozen layers
TOLERANCE = {"fp32": 1e-4, "fp16": 3e-2}


def load(format):
    try:
        return trt_api.load(format)
    except DependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def make_engine(tiny_bundle, tmp_path_factory):
    """An engine file of the tiny network, built once per format, precision and λ."""
    folder = tmp_path_factory.mktemp("engines")

    def make(format, precision="fp32", pinned=None, **changes):
        batches = changes.pop("batches", (LOW, USUAL, HIGH))
        recipe = Recipe(format=format, precision=precision, batches=batches, **changes)
        path = folder / f"{format}-{precision}-{pinned}-{batches}-{sorted(changes.items())}.engine"
        if not path.exists():
            artifact = tiny_bundle.select(format="onnx", width=1.0, pinned_lambda=pinned)
            model = onnx.load(tiny_bundle.checked_path(artifact))
            if precision == "fp16":
                assert to_half(model) > 0
            path.write_bytes(build_engine(model.SerializeToString(), recipe, load(format)).plan)
        return path, recipe

    return make


@pytest.fixture(scope="module", params=sorted(LIBRARIES))
def format(request):
    load(request.param)
    return request.param


@pytest.fixture(scope="module")
def make_runner(make_engine, format):
    def make(precision="fp32", pinned=None, *, cuda_graph=True, **changes):
        path, recipe = make_engine(format, precision, pinned, **changes)
        io = dataclasses.replace(IO, pinned_lambda=pinned)
        return TrtRunner(path, io, recipe=recipe, cuda_graph=cuda_graph)

    return make


@pytest.fixture(scope="module")
def runner(make_runner):
    with make_runner() as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(tiny_bundle):
    with open_runner(tiny_bundle.path, 1.0, threads=1) as opened:
        yield opened


def batch(num, seed=0):
    return np.random.default_rng(seed).random((num, 1, 8, 8), dtype=np.float32)


def lambdas(num):
    return np.resize(np.array([0, 0.3, 1, 0.05, 0.1, 0.77], dtype=np.float32), num)


@on_gpu
def test_it_says_what_runs(runner, format):
    assert runner.device == "cuda" and runner.precision == "fp32"
    assert runner.backend == {"trt": "tensorrt", "trt-rtx": "tensorrt-rtx"}[format]
    assert runner.versions == {LIBRARIES[format]: load(format).version, "cuda": cuda.gpu().cuda}
    assert runner.batch_limit == HIGH
    told = {kind for kind in runner.convolutions if kind != "unknown"}
    assert told == {"fp32"} or any("precision" in remark for remark in runner.remarks)


@on_gpu
@pytest.mark.parametrize("precision", sorted(TOLERANCE))
@pytest.mark.parametrize("num", range(1, HIGH + 1))
def test_it_agrees_with_onnx_runtime_at_each_batch_size(num, precision, make_runner, reference):
    """λ differs from image to image; fewer images than the engine takes are filled up."""
    expected = reference.infer(batch(num), lambdas(num))
    with make_runner(precision) as opened:
        assert opened.precision == precision
        for _ in range(3):  # the first one records the graph
            logits = opened.infer(batch(num), lambdas(num))
            assert logits.shape == (num, 10) and logits.dtype == np.float32
            np.testing.assert_allclose(logits, expected, atol=TOLERANCE[precision])


@on_gpu
def test_pinned_agrees_with_the_knob(make_runner, runner):
    with make_runner(pinned=1.0) as pinned:
        np.testing.assert_allclose(pinned.infer(batch(5)), runner.infer(batch(5), 1.0), atol=1e-4)
        with pytest.raises(InputError, match=r"expected 1 \(all this network has\)"):
            pinned.infer(batch(5), 0.3)


@on_gpu
def test_a_graph_takes_the_lambda_and_the_images_of_now(runner, reference):
    for seed, lam in enumerate([0.0, 1.0, 0.3, 0.0]):
        found = runner.infer(batch(4, seed), lam)
        np.testing.assert_allclose(found, reference.infer(batch(4, seed), lam), atol=1e-4)


@on_gpu
def test_with_and_without_graphs_the_logits_are_the_same(make_runner):
    with make_runner() as graphs, make_runner(cuda_graph=False) as plain:
        assert any("cuda_graph: off" in remark for remark in plain.remarks)
        for num in (2, 12, 3, 2, 12):  # the plain context changes its shape back and forth
            found = [one.infer(batch(num), lambdas(num)) for one in (graphs, plain)]
            np.testing.assert_array_equal(*found)
        assert not any("cuda_graph" in remark for remark in graphs.remarks)


@on_gpu
def test_batch_sizes_beyond_the_graphs_that_are_kept_are_right_and_said(make_runner, reference):
    with make_runner() as opened:
        for num in range(LOW, LOW + MAX_GRAPHS):
            opened.infer(batch(num), 0.3)
        assert not any("cuda_graph" in remark for remark in opened.remarks)
        for num in (HIGH, HIGH - 1, HIGH, LOW):
            expected = reference.infer(batch(num), lambdas(num))
            np.testing.assert_allclose(opened.infer(batch(num), lambdas(num)), expected, atol=1e-4)
        (remark,) = [remark for remark in opened.remarks if "cuda_graph" in remark]
        assert f"first {MAX_GRAPHS}" in remark


@on_gpu
def test_more_images_than_the_engine_takes_are_refused(runner):
    with pytest.raises(InputError, match=f"holds {HIGH + 1} images: .* up to {HIGH}") as caught:
        runner.infer(batch(HIGH + 1), 0.3)
    assert "\n" not in str(caught.value)


@on_gpu
def test_the_output_is_the_caller_s_and_the_input_stays(runner):
    images, lam = batch(3), lambdas(3)
    kept = images.copy(), lam.copy()
    first = runner.infer(images, lam)
    saved = first.copy()
    runner.infer(batch(3, seed=1), lam)
    np.testing.assert_array_equal(first, saved)
    first[:] = 7
    np.testing.assert_array_equal(runner.infer(images, lam), saved)
    np.testing.assert_array_equal(images, kept[0])
    np.testing.assert_array_equal(lam, kept[1])


@on_gpu
def test_any_layout_in_memory_is_taken(runner):
    images = batch(4)
    expected = runner.infer(images, 0.3)
    for same in (
        np.asfortranarray(images),
        np.repeat(images, 2, axis=0)[::2],
        np.ascontiguousarray(images[::-1])[::-1],
    ):
        np.testing.assert_array_equal(runner.infer(same, 0.3), expected)


@on_gpu
@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"num_classes": 7}, r"'logits': \('out', 'FLOAT', 10\).*expected.*7"),
        ({"image_shape": (3, 8, 8)}, r"expected.*3, 8, 8"),
        ({"pinned_lambda": 1.0}, r"has .*'lambda'.*expected"),
    ],
)
def test_another_network_s_engine_is_refused(change, pattern, make_engine, format):
    path, recipe = make_engine(format)
    with pytest.raises(InputError, match=pattern) as caught:
        TrtRunner(path, dataclasses.replace(IO, **change), recipe=recipe)
    assert "\n" not in str(caught.value)


@on_gpu
def test_an_engine_of_another_precision_is_refused(make_engine, format):
    path, recipe = make_engine(format, "fp32")
    wrong = dataclasses.replace(recipe, precision="fp16")
    try:
        runner = TrtRunner(path, IO, recipe=wrong)
    except FallbackError as error:
        assert "fp16" in str(error)
    else:  # an opaque engine cannot be caught, but must say that it was not looked into
        with runner:
            assert any("precision" in remark for remark in runner.remarks)


@on_gpu
def test_a_missing_file_is_an_input_error(make_engine, format, tmp_path):
    _, recipe = make_engine(format)
    with pytest.raises(InputError, match=r"gone\.engine cannot be read"):
        TrtRunner(tmp_path / "gone.engine", IO, recipe=recipe)


@on_gpu
def test_times_of_the_device_are_those_of_the_last_request(make_runner):
    with make_runner() as opened:
        assert opened.device_times() is None
        opened.infer(batch(4), 0.3)
        times = opened.device_times()
        assert 0 < times.h2d_ms < 100 and 0 < times.compute_ms < 100 and 0 < times.d2h_ms < 100
        assert opened.device_times() == times
    assert opened.device_times() is None


@on_gpu
def test_the_profile_names_the_convolutions_and_leaves_the_runner_as_it_was(runner):
    before = runner.infer(batch(5), lambdas(5))
    layers = runner.profile(batch(5), lambdas(5), runs=4)
    assert layers and len({layer.name for layer in layers}) == len(layers)
    assert all(layer.ms >= 0 and layer.kind for layer in layers)
    assert sum(layer.ms for layer in layers) > 0
    np.testing.assert_array_equal(runner.infer(batch(5), lambdas(5)), before)
    with pytest.raises(InputError, match="runs is 0"):
        runner.profile(batch(5), lambdas(5), runs=0)
    with pytest.raises(InputError, match="lambda is"):
        runner.profile(batch(5), lambdas(5) + 1, runs=1)


@on_gpu
def test_threads_that_share_a_runner_get_their_own_logits(make_runner, reference):
    failures = []
    with make_runner() as opened:

        def work(seed):
            expected = reference_logits[seed]
            for _ in range(30):
                found = opened.infer(batch(1 + seed % 5, seed), lambdas(1 + seed % 5))
                if np.abs(found - expected).max() > 1e-4:
                    failures.append(seed)

        reference_logits = [
            reference.infer(batch(1 + seed % 5, seed), lambdas(1 + seed % 5)) for seed in range(8)
        ]
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


@on_gpu
def test_closing_twice_is_once_and_gives_the_memory_back(make_runner):
    make_runner().close()  # what the libraries keep for good, they have taken now
    before = cuda.memory_used_mb()
    for _ in range(5):
        opened = make_runner()
        for num in (2, 5, 9):
            opened.infer(batch(num), 0.3)
        opened.close()
        opened.close()
        with pytest.raises(InputError, match="is closed: open it again"):
            opened.infer(batch(2), 0.3)
        with pytest.raises(InputError, match="is closed"):
            opened.profile(batch(2), lambdas(2), runs=1)
    assert cuda.memory_used_mb() < before + 64


@on_gpu
def test_a_runner_left_open_says_nothing_when_the_interpreter_ends(
    make_engine, format, child_environment
):
    path, recipe = make_engine(format)
    code = f"""
from pathlib import Path
import numpy as np
from oat_edge.runtime.recipe import Recipe
from oat_edge.runtime.runner import RunnerIO
from oat_edge.runtime.trt import TrtRunner
io = RunnerIO(image_shape=(1, 8, 8), num_classes=10, lambdas=(0.0, 1.0))
runner = TrtRunner(Path({str(path)!r}), io, recipe=Recipe.from_json({recipe.to_json()!r}))
runner.infer(np.zeros((3, 1, 8, 8), np.float32), 0.3)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
