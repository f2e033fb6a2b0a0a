"""Requests with memory of fixed addresses: on the CPU what can be, the rest needs a GPU."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

from oat_edge.errors import InputError
from oat_edge.runtime import open_artifact
from oat_edge.runtime.ort import OrtRunner
from oat_edge.runtime.ort_cuda import BoundRequest, Gate
from tests.gpus import need_cuda_provider

LAMBDAS = (0.0, 0.05, 0.1, 0.3, 0.77, 1.0)


def images(num, seed=0):
    return np.random.default_rng(seed).random((num, 1, 8, 8), dtype=np.float32)


def lambdas(num):
    return np.resize(np.array(LAMBDAS, dtype=np.float32), num)


@pytest.fixture(scope="module", params=[None, 1.0])
def on_cpu(request, tiny_bundle):
    artifact = tiny_bundle.select(format="onnx", width=1.0, pinned_lambda=request.param)
    with open_artifact(tiny_bundle, artifact, threads=1) as opened:
        yield opened


def test_bound_memory_takes_new_images_and_lambdas_at_the_same_addresses(on_cpu):
    session = onnxruntime.InferenceSession(
        on_cpu.path.read_bytes(), providers=["CPUExecutionProvider"]
    )
    pinned = on_cpu.io.pinned_lambda is not None
    bound = {num: BoundRequest(onnxruntime, session, on_cpu.io, num, place="cpu") for num in (1, 3)}
    for seed in range(3):
        for num, request in bound.items():
            image = images(num, seed)
            lam = np.roll(lambdas(num), seed) if not pinned else np.ones(num, dtype=np.float32)
            expected = on_cpu.infer(image, lam)
            np.testing.assert_allclose(request.run(image, lam), expected, atol=1e-5)


def test_one_that_is_alone_waits_for_all_inside_and_keeps_all_others_out():
    gate, seen, inside, left = Gate(), [], threading.Event(), threading.Event()

    def long_request():
        with gate.together():
            inside.set()
            left.wait(10)
            seen.append("request")

    def capture():
        with gate.alone():
            seen.append("capture begins")
            time.sleep(0.02)
            seen.append("capture ends")

    def late_request():
        with gate.together():
            seen.append("late")

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(long_request)
        assert inside.wait(10)
        second = pool.submit(capture)
        time.sleep(0.02)
        third = pool.submit(late_request)
        time.sleep(0.02)
        assert seen == []
        left.set()
        for future in (first, second, third):
            future.result(timeout=10)
    assert seen == ["request", "capture begins", "capture ends", "late"]


def test_many_are_inside_together():
    gate, meet = Gate(), threading.Barrier(3, timeout=10)

    def request():
        with gate.together():
            meet.wait()

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(request) for _ in range(3)]:
            future.result(timeout=10)


def test_an_error_inside_leaves_the_gate_open():
    gate = Gate()
    for enter in (gate.together, gate.alone):
        with pytest.raises(ZeroDivisionError), enter():
            raise ZeroDivisionError
    with gate.alone():
        pass
    with gate.together():
        pass


@pytest.fixture
def on_gpu(tiny_bundle):
    """Makes runners of one file on the GPU."""
    need_cuda_provider()
    opened = []

    def make(**options):
        artifact = tiny_bundle.select(format="onnx", width=1.0)
        with open_artifact(tiny_bundle, artifact, threads=1) as runner:
            path, io = runner.path, runner.io
        opened.append(OrtRunner(path, io, device="cuda", **options))
        return opened[-1]

    yield make
    for runner in opened:
        runner.close()


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_gpu_agrees_with_the_cpu_at_every_batch_size_and_lambda(on_gpu, tiny_bundle, cuda_graph):
    artifact = tiny_bundle.select(format="onnx", width=1.0)
    runner = on_gpu(cuda_graph=cuda_graph)
    assert (runner.backend, runner.device, runner.precision) == ("onnxruntime-cuda", "cuda", "fp32")
    with open_artifact(tiny_bundle, artifact, threads=1) as cpu:
        # Every size comes back after others: a replay must find its own memory and values.
        for seed in range(3):
            for num in (1, 5, 2, 17):
                image, lam = images(num, seed), np.roll(lambdas(num), seed)
                np.testing.assert_allclose(
                    runner.infer(image, lam), cpu.infer(image, lam), atol=1e-3
                )
    expected = () if cuda_graph else ("cuda_graph: off",)
    assert runner.remarks == expected


@pytest.mark.gpu
def test_all_nodes_are_on_the_gpu(on_gpu):
    counts = on_gpu().node_counts
    assert set(counts) == {"CUDAExecutionProvider"} and sum(counts.values()) > 20


@pytest.mark.gpu
def test_runners_of_their_own_run_beside_each_other_in_threads(on_gpu):
    runners = [on_gpu() for _ in range(3)]
    expected = on_gpu(cuda_graph=False).infer(images(4), lambdas(4))

    def work(runner):
        return [runner.infer(images(4), lambdas(4)) for _ in range(50)]

    with ThreadPoolExecutor(3) as pool:
        for logits in pool.map(work, runners):
            np.testing.assert_allclose(logits, np.stack([expected] * 50), atol=1e-3)
    assert all(runner.remarks == () for runner in runners)


@pytest.mark.gpu
def test_a_gpus_layers_are_found_and_the_runner_still_runs(on_gpu):
    runner = on_gpu()
    before = runner.infer(images(2), lambdas(2))
    layers = runner.profile(images(2), lambdas(2), runs=3)
    assert "Conv" in {layer.kind.removeprefix("Fused") for layer in layers}
    np.testing.assert_allclose(runner.infer(images(2), lambdas(2)), before, atol=1e-5)


@pytest.mark.gpu
def test_tf32_is_off_unless_asked_for_and_then_said(on_gpu):
    assert on_gpu(use_tf32=True).precision == "tf32"
    assert on_gpu().precision == "fp32"


@pytest.mark.gpu
def test_a_closed_gpu_runner_says_so(on_gpu):
    runner = on_gpu()
    runner.close()
    with pytest.raises(InputError, match="closed"):
        runner.infer(images(1), 0.3)
