"""The requests that are timed: open runners, and their latency and throughput."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from oat_edge.bench.config import GPU_WORKERS, BenchConfig
from oat_edge.bench.latency import LatencySamples, Measurable, Progress, measure
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
        device=config.device,
        threads=threads,
        cuda_graph=config.cuda_graph,
        say=say,
    )


def latency_samples(
    artifacts: Sequence[Artifact],
    runners: Sequence[Runner],
    images: Mapping[int, Float32],
    config: BenchConfig,
    progress: Progress,
) -> dict[str, dict[int, LatencySamples]]:
    """Samples by file and batch; all of them take turns."""
    keys: list[tuple[str, int]] = []
    measurables: list[Measurable] = []
    for artifact, runner in zip(artifacts, runners, strict=True):
        for batch in config.batches:
            keys.append((artifact.file, batch))
            measurables.append(
                Measurable(
                    name=f"{artifact.file} batch {batch}",
                    call=_request(runner, images[batch]),
                    num_lambdas=_num_lambdas(runner),
                    device_times=runner.device_times,
                )
            )
    found: dict[str, dict[int, LatencySamples]] = {artifact.file: {} for artifact in artifacts}
    measured = measure(measurables, config, progress=progress)
    for (file, batch), samples in zip(keys, measured, strict=True):
        found[file][batch] = samples
    return found


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
            for _ in range(1 if config.device == "cpu" else workers)
        ]
        for batch in config.batches:
            calls = [_request(runner, images[batch]) for runner in runners]
            found[batch] = measure_throughput(
                calls * (workers // len(calls)),
                num_lambdas=_num_lambdas(runners[0]),
                batch=batch,
                min_seconds=config.throughput_seconds,
                warmup_s=config.warmup_min_s,
            ).images_per_s
    remarks = dict.fromkeys(remark for runner in runners for remark in runner.remarks)
    return found, tuple(remarks)


def num_workers(config: BenchConfig) -> int:
    """Requests in flight in throughput mode."""
    usual = available_cores() if config.device == "cpu" else GPU_WORKERS
    return config.throughput_workers or usual


def _request(runner: Runner, images: Float32) -> Callable[[int], None]:
    """One request; λ arrays are made beforehand, so that only `infer` is timed."""
    pinned = runner.io.pinned_lambda
    lambdas = runner.io.lambdas if pinned is None else (pinned,)
    lam_arrays = [np.full(len(images), lam, dtype=np.float32) for lam in lambdas]

    def call(lambda_index: int) -> None:
        runner.infer(images, lam_arrays[lambda_index])

    return call


def _num_lambdas(runner: Runner) -> int:
    return len(runner.io.lambdas) if runner.io.pinned_lambda is None else 1
