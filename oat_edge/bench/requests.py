"""The requests that are timed: open runners, and their latency and throughput."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import numpy as np

from oat_edge.bench.config import GPU_WORKERS, BenchConfig
from oat_edge.bench.latency import Measurable
from oat_edge.bench.throughput import available_cores, measure_throughput
from oat_edge.bundle import Artifact, Bundle
from oat_edge.runtime import Runner, open_artifact
from oat_edge.runtime.engines import Say, silent
from oat_edge.runtime.runner import Float32


def open_runner_of(
    bundle: Bundle,
    artifact: Artifact,
    config: BenchConfig,
    *,
    threads: int | None,
    say: Say = silent,
) -> Runner:
    """Open an artifact as `config` has it.  say: told if an engine has to be built first."""
    return open_artifact(
        bundle,
        artifact,
        device=config.runner_device,
        threads=threads,
        cuda_graph=config.cuda_graph,
        say=say,
    )


def measurable_of(artifact: Artifact, runner: Runner, image: Float32) -> Measurable:
    """Requests of an open artifact.  image: (N, C, H, W), those of one request."""
    return Measurable(
        name=f"{artifact.file} batch {len(image)}",
        call=_request(runner, image),
        num_lambdas=num_lambdas(runner),
        device_times=runner.device_times,
    )


def throughput_ips(
    bundle: Bundle, artifact: Artifact, images: Mapping[int, Float32], config: BenchConfig
) -> tuple[dict[int, float], tuple[str, ...]]:
    """Images per second by batch, and what the runners remark.

    On a CPU the workers share one runner and the cores, so each request has one thread. On a GPU
    each has a runner of its own: the requests of one wait for each other.
    """
    workers = num_workers(config)
    found = {}
    with ExitStack() as stack:
        runners = [
            stack.enter_context(open_runner_of(bundle, artifact, config, threads=1))
            for _ in range(workers if config.on_gpu else 1)
        ]
        for batch in config.batches:
            calls = [_request(runner, images[batch]) for runner in runners]
            found[batch] = measure_throughput(
                calls * (workers // len(calls)),
                num_lambdas=num_lambdas(runners[0]),
                batch=batch,
                min_seconds=config.throughput_seconds,
                warmup_s=config.warmup_min_s,
            ).images_per_s
    remarks = dict.fromkeys(remark for runner in runners for remark in runner.remarks)
    return found, tuple(remarks)


def num_workers(config: BenchConfig) -> int:
    """Requests in flight in throughput mode."""
    usual = GPU_WORKERS if config.on_gpu else available_cores()
    return config.throughput_workers or usual


def _request(runner: Runner, images: Float32) -> Callable[[int], None]:
    """One request; λ arrays are made beforehand, so that only `infer` is timed."""
    pinned = runner.io.pinned_lambda
    lambdas = runner.io.lambdas if pinned is None else (pinned,)
    lam_arrays = [np.full(len(images), lam, dtype=np.float32) for lam in lambdas]

    def call(lambda_index: int) -> None:
        runner.infer(images, lam_arrays[lambda_index])

    return call


def num_lambdas(runner: Runner) -> int:
    """How many λ its requests go round."""
    return len(runner.io.lambdas) if runner.io.pinned_lambda is None else 1
