"""Bench a whole bundle on this machine's CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from oat_edge.bench.accuracy import accuracy_seconds, attack_settings, measure_outcomes
from oat_edge.bench.config import BenchConfig
from oat_edge.bench.environment import collect
from oat_edge.bench.inputs import (
    bench_images,
    check_device,
    check_lambdas,
    load_packs,
    onnx_artifacts,
)
from oat_edge.bench.latency import LatencySamples, Measurable, Progress, measure
from oat_edge.bench.memory import measure_memory
from oat_edge.bench.progress import Stages
from oat_edge.bench.report import NOT_SAVED, BundleId, Report
from oat_edge.bench.rows import Figures, make_rows
from oat_edge.bench.throughput import available_cores, measure_throughput
from oat_edge.bundle import Artifact, Bundle
from oat_edge.evaluation.outcome import Outcome
from oat_edge.evaluation.pack_set import PackSet
from oat_edge.evaluation.transfer import TransferGrid, transfer_grids
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime import Runner, open_artifact
from oat_edge.runtime.runner import Float32

# Per file; only for the estimate of the time left.
MEMORY_GUESS_S = 2.0


def bench_bundle(
    bundle: Bundle,
    config: BenchConfig,
    *,
    widths: Sequence[float],
    lambdas: Sequence[float],
    progress: Progress | None = None,
) -> tuple[Report, tuple[LatencySamples, ...]]:
    """Measure every ONNX file of these widths: latency, accuracy, throughput and memory.

    lambdas: a row each, for files that take λ as an input (latency is measured over all knots
    whatever is asked for); a file with a pinned λ gets its one row. Returns the report and the
    raw latency samples, for `save_report`.
    Raises `DependencyError` (device), `InputError` (bundle, widths, λ, packs).
    """
    check_device(config.device)
    # Said, not left to the back end: a latency without its threads is no figure.
    config = dataclasses.replace(config, threads=config.threads or available_cores())
    check_lambdas(bundle, lambdas)
    artifacts = onnx_artifacts(bundle, widths)
    packs = load_packs(bundle, config.attacks)
    images, image_source = bench_images(bundle, packs, config.batches, seed=config.seed)
    environment = collect()
    measured = _measure_all(bundle, artifacts, packs, images, lambdas, config, progress)
    figures = [figure for figure, _ in measured]
    rows, flatness, cost = make_rows(figures, lambdas, bundle.spec.lambdas, config)
    report = Report(
        environment=environment,
        settings={
            **config.to_json(),
            "throughput_workers": _num_workers(config),
            "widths": list(widths),
            "lambdas": list(lambdas),
            "lambda_knots": list(bundle.spec.lambdas),
            "images": image_source,
            "attacks": attack_settings(packs, config),
            "latency": "host time of Runner.infer, numpy arrays in and out",
            "throughput": "one single-threaded request in flight per worker",
            "percentiles": "linear interpolation between order statistics",
        },
        bundle=BundleId(run=bundle.run, checkpoint_sha256=bundle.checkpoint_sha256),
        rows=rows,
        lambda_cost=cost,
        lambda_flatness=flatness,
        samples_file=None,
        warnings=(NOT_SAVED, *(packs.warnings if packs is not None else ())),
        transfer=_transfer(measured),
    )
    return report, tuple(one for figure in figures for one in figure.samples.values())


def _measure_all(
    bundle: Bundle,
    artifacts: Sequence[Artifact],
    packs: PackSet | None,
    images: Mapping[int, Float32],
    lambdas: Sequence[float],
    config: BenchConfig,
    progress: Progress | None,
) -> list[tuple[Figures, dict[float, Outcome]]]:
    def lambdas_of(artifact: Artifact) -> Sequence[float]:
        return lambdas if artifact.pinned_lambda is None else (artifact.pinned_lambda,)

    with ExitStack() as stack:
        runners = [
            stack.enter_context(
                open_artifact(bundle, artifact, device=config.device, threads=config.threads)
            )
            for artifact in artifacts
        ]
        accuracy_s = [
            accuracy_seconds(runner, packs, artifact.width, lambdas_of(artifact), config)
            for artifact, runner in zip(artifacts, runners, strict=True)
        ]
        stages = Stages(progress, _guesses_s(config, accuracy_s))
        samples = _latency(artifacts, runners, images, config, stages.begin("latency"))
        outcomes = []
        for artifact, runner in zip(artifacts, runners, strict=True):
            label = f"accuracy {artifact.file}"
            outcomes.append(
                measure_outcomes(
                    runner,
                    packs,
                    artifact.width,
                    lambdas_of(artifact),
                    config,
                    stages.begin(label),
                    label=label,
                )
            )
    figures = []
    for artifact, runner, by_lambda in zip(artifacts, runners, outcomes, strict=True):
        stages.begin(f"throughput {artifact.file}")
        throughput_ips = _throughput(bundle, artifact, images, config)
        stages.begin(f"memory {artifact.file}")
        figures.append(
            Figures(
                artifact=artifact,
                backend=runner.backend,
                precision=runner.precision,
                samples=samples[artifact.file],
                throughput_ips=throughput_ips,
                memory=measure_memory(
                    bundle, artifact, batches=config.batches, threads=config.threads
                ),
                accuracy={lam: outcome.accuracy() for lam, outcome in by_lambda.items()},
                pack_lambdas=() if packs is None else packs.lambdas(artifact.width),
            )
        )
    stages.finish()
    return list(zip(figures, outcomes, strict=True))


def _transfer(
    measured: Sequence[tuple[Figures, dict[float, Outcome]]],
) -> tuple[TransferGrid, ...]:
    """Grids whose targets are the files that take λ as an input, one per width."""
    targets: dict[OperatingPoint, Outcome] = {}
    for figure, outcomes in measured:
        if figure.artifact.pinned_lambda is None:
            for lam, outcome in outcomes.items():
                targets.setdefault(OperatingPoint(figure.artifact.width, lam), outcome)
    return transfer_grids(targets)


def _latency(
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
                )
            )
    found: dict[str, dict[int, LatencySamples]] = {artifact.file: {} for artifact in artifacts}
    measured = measure(measurables, config, progress=progress)
    for (file, batch), samples in zip(keys, measured, strict=True):
        found[file][batch] = samples
    return found


def _throughput(
    bundle: Bundle, artifact: Artifact, images: Mapping[int, Float32], config: BenchConfig
) -> dict[int, float]:
    """Images per second by batch; the workers share the cores, so each request has one thread."""
    found = {}
    with open_artifact(bundle, artifact, device=config.device, threads=1) as runner:
        for batch in config.batches:
            found[batch] = measure_throughput(
                _request(runner, images[batch]),
                num_lambdas=_num_lambdas(runner),
                batch=batch,
                workers=_num_workers(config),
                min_seconds=config.throughput_seconds,
                warmup_s=config.warmup_min_s,
            ).images_per_s
    return found


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


def _num_workers(config: BenchConfig) -> int:
    return config.throughput_workers or available_cores()


def _guesses_s(config: BenchConfig, accuracy_s: Sequence[float]) -> list[float]:
    """One guess per stage, in the order in which they begin.  accuracy_s: one per artifact."""
    num_artifacts = len(accuracy_s)
    per_cell_s = 2 * config.warmup_min_s + config.min_seconds + config.rounds * config.rewarm_s
    latency_s = num_artifacts * len(config.batches) * per_cell_s
    throughput_s = len(config.batches) * (config.warmup_min_s + config.throughput_seconds)
    return [latency_s, *accuracy_s, *[throughput_s, MEMORY_GUESS_S] * num_artifacts]
