"""Bench a whole bundle on this machine's CPU or GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from oat_edge.bench.accuracy import accuracy_seconds, attack_settings, measure_outcomes
from oat_edge.bench.config import BenchConfig
from oat_edge.bench.environment import Environment, collect
from oat_edge.bench.inputs import (
    bench_images,
    check_device,
    check_lambdas,
    check_libraries,
    files_to_measure,
    load_packs,
)
from oat_edge.bench.latency import LatencySamples, Progress
from oat_edge.bench.memory import measure_memory
from oat_edge.bench.profile import ArtifactProfile, profile_artifact
from oat_edge.bench.progress import Stages
from oat_edge.bench.report import NOT_SAVED, BundleId, Report
from oat_edge.bench.requests import latency_samples, num_workers, open_runner_of, throughput_ips
from oat_edge.bench.rows import Figures, make_rows
from oat_edge.bench.throughput import available_cores
from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import OatEdgeError
from oat_edge.evaluation.outcome import Outcome
from oat_edge.evaluation.pack_set import PackSet
from oat_edge.evaluation.transfer import TransferGrid, transfer_grids
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime.engines import Say, silent
from oat_edge.runtime.recipe import LIBRARIES
from oat_edge.runtime.runner import Float32

# Per file; only for the estimate of the time left.
MEMORY_GUESS_S = 2.0
PROFILE_GUESS_S = 1.0


def bench_bundle(
    bundle: Bundle,
    config: BenchConfig,
    *,
    widths: Sequence[float],
    lambdas: Sequence[float],
    progress: Progress | None = None,
    say: Say = silent,
) -> tuple[Report, tuple[LatencySamples, ...]]:
    """Measure the files of these widths: latency, accuracy, throughput and memory.

    lambdas: a row each, for files that take λ as an input (latency is measured over all knots
    whatever is asked for); a file with a pinned λ gets its one row. say: told of engines that are
    built first. Returns the report and the raw latency samples, for `save_report`.
    Raises `DependencyError` (device), `InputError` (bundle, widths, λ, batches, packs), and what
    opening a file raises; all of it before anything is measured.
    """
    check_device(config.device)
    # Said, not left to the back end: a latency without its threads is no figure.
    config = dataclasses.replace(config, threads=config.threads or available_cores())
    check_lambdas(bundle, lambdas)
    artifacts = files_to_measure(bundle, widths, config)
    check_libraries(bundle, artifacts)
    packs = load_packs(bundle, config.attacks)
    images, image_source = bench_images(bundle, packs, config.batches, seed=config.seed)
    environment = collect(device=config.device)
    measured = _measure_all(bundle, artifacts, packs, images, lambdas, config, progress, say)
    figures = [one.figures for one in measured]
    rows, flatness, cost = make_rows(figures, lambdas, bundle.spec.lambdas, config)
    transfer, transfer_artifacts, transfer_warnings = _transfer(measured, config)
    report = Report(
        environment=_with_engine_versions(environment, measured),
        settings={
            **config.to_json(),
            **_meanings(config),
            "throughput_workers": num_workers(config),
            "widths": list(widths),
            "lambdas": list(lambdas),
            "lambda_knots": list(bundle.spec.lambdas),
            "images": image_source,
            "attacks": attack_settings(packs, config),
            "nodes": {one.figures.artifact.file: one.nodes for one in measured if one.nodes},
        },
        bundle=BundleId(run=bundle.run, checkpoint_sha256=bundle.checkpoint_sha256),
        rows=rows,
        lambda_cost=cost,
        lambda_flatness=flatness,
        samples_file=None,
        warnings=(
            NOT_SAVED,
            *(packs.warnings if packs else ()),
            *transfer_warnings,
            *(text for one in measured for text in one.warnings),
        ),
        transfer=transfer,
        profile=tuple(profile for one in measured for profile in one.profiles),
        transfer_artifacts=transfer_artifacts,
    )
    return report, tuple(one for figure in figures for one in figure.samples.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """All that was found out about one artifact."""

    figures: Figures
    outcomes: dict[float, Outcome]
    """By λ."""
    profiles: tuple[ArtifactProfile, ...]
    versions: dict[str, str]
    nodes: dict[str, int]
    """Of a file in ONNX Runtime on a GPU: nodes by provider."""
    warnings: tuple[str, ...]
    """What could not be found out, and why."""


def _measure_all(
    bundle: Bundle,
    artifacts: Sequence[Artifact],
    packs: PackSet | None,
    images: Mapping[int, Float32],
    lambdas: Sequence[float],
    config: BenchConfig,
    progress: Progress | None,
    say: Say,
) -> list[_Measured]:
    def lambdas_of(artifact: Artifact) -> Sequence[float]:
        return lambdas if artifact.pinned_lambda is None else (artifact.pinned_lambda,)

    with ExitStack() as stack:
        runners = [
            stack.enter_context(
                open_runner_of(bundle, artifact, config, threads=config.threads, say=say)
            )
            for artifact in artifacts
        ]
        accuracy_s = [
            accuracy_seconds(runner, packs, artifact.width, lambdas_of(artifact), config)
            for artifact, runner in zip(artifacts, runners, strict=True)
        ]
        stages = Stages(progress, _guesses_s(config, accuracy_s))
        samples = latency_samples(artifacts, runners, images, config, stages.begin("latency"))
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
        nodes = [getattr(runner, "node_counts", {}) for runner in runners]
    measured = []
    for index, (artifact, runner) in enumerate(zip(artifacts, runners, strict=True)):
        stages.begin(f"throughput {artifact.file}")
        throughput, remarks = throughput_ips(bundle, artifact, images, config)
        stages.begin(f"memory {artifact.file}")
        figures = Figures(
            artifact=artifact,
            backend=runner.backend,
            precision=runner.precision,
            samples=samples[artifact.file],
            throughput_ips=throughput,
            memory=measure_memory(
                bundle,
                artifact,
                batches=config.batches,
                threads=config.threads,
                device=config.device,
                cuda_graph=config.cuda_graph,
            ),
            accuracy={lam: outcome.accuracy() for lam, outcome in outcomes[index].items()},
            pack_lambdas=() if packs is None else packs.lambdas(artifact.width),
            on_gpu=config.device != "cpu",
            remarks=(
                *runner.remarks,
                *(f"throughput_ips: {text}" for text in remarks if text not in runner.remarks),
            ),
        )
        profiles, warnings = _profiles(bundle, artifact, images, config, stages)
        measured.append(
            _Measured(
                figures=figures,
                outcomes=outcomes[index],
                profiles=profiles,
                versions=runner.versions,
                nodes=nodes[index],
                warnings=warnings,
            )
        )
    stages.finish()
    return measured


def _profiles(
    bundle: Bundle,
    artifact: Artifact,
    images: Mapping[int, Float32],
    config: BenchConfig,
    stages: Stages,
) -> tuple[tuple[ArtifactProfile, ...], tuple[str, ...]]:
    """Of a file that takes λ as an input, if layers are asked for; and why there is none.

    It comes last, on a runner of its own: what goes wrong here costs no other figure.
    """
    if not config.profile:
        return (), ()
    stages.begin(f"layers {artifact.file}")
    if artifact.pinned_lambda is not None:
        return (), ()
    try:
        with open_runner_of(bundle, artifact, config, threads=config.threads) as runner:
            return profile_artifact(artifact, runner, images, runs=config.profile_runs), ()
    except (OatEdgeError, OSError) as error:
        return (), (f"profile: {artifact.file}: {error}",)


def _transfer(
    measured: Sequence[_Measured], config: BenchConfig
) -> tuple[tuple[TransferGrid, ...], tuple[str, ...] | None, tuple[str, ...]]:
    """Grids whose targets are files that take λ as an input, one per width; which files; warnings.

    Of several files of a width it is the first, on a CPU the one in float32 if there is one: half
    precision is only emulated there.
    """
    files: dict[float, list[_Measured]] = {}
    for one in measured:
        if one.figures.artifact.pinned_lambda is None:
            files.setdefault(one.figures.artifact.width, []).append(one)
    if config.device == "cpu":
        for several in files.values():
            several.sort(key=lambda one: one.figures.precision != "fp32")
    targets = {
        OperatingPoint(width, lam): outcome
        for width, (first, *_) in files.items()
        for lam, outcome in first.outcomes.items()
    }
    grids = transfer_grids(targets)
    if not grids:
        return (), None, ()
    names = {width: first.figures.artifact.file for width, (first, *_) in files.items()}
    shown = ", ".join(names[width] for width, (_, *others) in files.items() if others)
    warnings = (f"transfer: of several files of a width the grids are of {shown}",) if shown else ()
    return grids, tuple(names.values()), warnings


def _meanings(config: BenchConfig) -> dict[str, Any]:
    """What the figures are, in words."""
    words = {
        "latency": "host time of Runner.infer, numpy arrays in and out",
        "throughput": "one single-threaded request in flight per worker",
        "percentiles": "linear interpolation between order statistics",
    }
    if config.device != "cpu":
        words["latency"] += ", copies to the device and back included"
        words["device_ms"] = (
            "of the same requests by the device's own events: h2d copies image and λ, compute "
            "runs the network (without a CUDA graph also waits for the host between kernels), d2h "
            "copies the logits"
        )
        words["throughput"] = "one request in flight per worker, each on a runner of its own"
        words["gpu_memory_mb"] = (
            "what opening and running adds to the memory in use on the whole GPU: other processes "
            "that take or free memory meanwhile disturb it"
        )
    return words


def _with_engine_versions(environment: Environment, measured: Sequence[_Measured]) -> Environment:
    """With what the engines say they run on: a system's TensorRT need not be a pip package."""
    found = {
        name.replace("_", "-"): version
        for one in measured
        if one.figures.artifact.format in LIBRARIES
        for name, version in one.versions.items()
    }
    versions = {**environment.library_versions, **found}
    return dataclasses.replace(environment, library_versions=versions)


def _guesses_s(config: BenchConfig, accuracy_s: Sequence[float]) -> list[float]:
    """One guess per stage, in the order in which they begin.  accuracy_s: one per artifact."""
    num_artifacts = len(accuracy_s)
    per_cell_s = 2 * config.warmup_min_s + config.min_seconds + config.rounds * config.rewarm_s
    latency_s = num_artifacts * len(config.batches) * per_cell_s
    throughput_s = len(config.batches) * (config.warmup_min_s + config.throughput_seconds)
    profile_s = [PROFILE_GUESS_S] if config.profile else []
    per_artifact_s = [throughput_s, MEMORY_GUESS_S, *profile_s]
    return [latency_s, *accuracy_s, *per_artifact_s * num_artifacts]
