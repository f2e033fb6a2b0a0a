"""From the records of a bench to what its report says of each artifact and of all together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oat_edge.bench import schema
from oat_edge.bench.cells import Cell
from oat_edge.bench.config import BenchConfig
from oat_edge.bench.environment import Environment
from oat_edge.bench.latency import LatencySamples, WarmUp
from oat_edge.bench.measuring import Measuring
from oat_edge.bench.memory import MemoryCost
from oat_edge.bench.profile import ArtifactProfile
from oat_edge.bench.records import outcome_from_json, warm_up_from_json
from oat_edge.bench.results import Results
from oat_edge.bench.rows import Figures
from oat_edge.bench.side_by_side import parts_of, rounds_of
from oat_edge.bundle import Artifact
from oat_edge.device.state import SpanState
from oat_edge.evaluation.outcome import Outcome
from oat_edge.evaluation.precisions import FileOutcomes
from oat_edge.evaluation.transfer import TransferGrid, transfer_grids
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime.recipe import LIBRARIES


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
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

    @property
    def file_outcomes(self) -> FileOutcomes:
        """As precisions are set side by side."""
        return FileOutcomes(
            artifact=self.figures.artifact,
            backend=self.figures.backend,
            precision=self.figures.precision,
            outcomes=self.outcomes,
        )


def measured_of(measuring: Measuring, artifact: Artifact) -> Measured:
    """From the records of one artifact, of this run and of those before it."""
    config, results, packs = measuring.config, measuring.results, measuring.packs
    file = artifact.file
    facts = results.last("facts", file=file) or {}
    remarks = dict.fromkeys(
        text for one in results.of("facts", file=file) for text in one["remarks"]
    )
    samples, throughput_ips, spans, memory = {}, {}, {}, {}
    for batch in config.batches:
        where = {"file": file, "batch": batch}
        parts = rounds_of(results, file, batch)
        if len(parts) >= config.rounds:
            samples[batch] = LatencySamples.of(
                f"{file} batch {batch}",
                parts_of(results, file, batch),
                _warm_ups(results, file, batch),
                facts["num_lambdas"],
            )
            states = (state_in(one) for one in parts.values())
            spans[batch] = tuple(state for state in states if state is not None)
        throughput = results.last("throughput", **where)
        if throughput is not None:
            throughput_ips[batch] = throughput["ips"]
            for text in throughput["remarks"]:
                remarks.setdefault(text if text in remarks else f"throughput_ips: {text}")
        if (cost := results.last("memory", **where)) is not None:
            memory[batch] = MemoryCost(
                added_mb={batch: cost["added_mb"]},
                reason=cost["reason"],
                gpu_added_mb={batch: cost["gpu_added_mb"]} if config.on_gpu else None,
                gpu_reason=cost["gpu_reason"],
            )
    found = results.last("accuracy", file=file) or {"outcomes": []}
    outcomes = {lam: outcome_from_json(value) for lam, value in found["outcomes"]}
    layers = results.last("layers", file=file) or {"profiles": []}
    no_layers = measuring.failures.get(Cell("layers", artifact).name)
    return Measured(
        figures=Figures(
            artifact=artifact,
            backend=facts.get("backend", "unknown"),
            precision=facts.get("precision", artifact.precision_requested),
            samples=samples,
            throughput_ips=throughput_ips,
            memory=memory,
            accuracy={lam: outcome.accuracy() for lam, outcome in outcomes.items()},
            pack_lambdas=() if packs is None else packs.lambdas(artifact.width),
            batches=config.batches,
            spans=spans,
            on_gpu=config.on_gpu,
            remarks=tuple(remarks),
            alone=tuple(one["batch"] for one in results.of("alone", file=file)),
            failures=measuring.failures,
        ),
        outcomes=outcomes,
        profiles=tuple(schema.load(ArtifactProfile, one, "layers") for one in layers["profiles"]),
        versions=facts.get("versions", {}),
        nodes=facts.get("nodes", {}),
        warnings=() if no_layers is None else (f"profile: {file}: {no_layers}",),
    )


def _warm_ups(results: Results, file: str, batch: int) -> list[WarmUp]:
    """Those that something was measured after: a process that was lost before is left out."""
    found, newest = [], None
    for record in results.records:
        if (record.get("file"), record.get("batch")) != (file, batch):
            continue
        if record["kind"] == "warm_up":
            newest = warm_up_from_json(record)
        elif record["kind"] == "part" and newest is not None:
            found.append(newest)
            newest = None
    return found


def state_in(record: Mapping[str, Any] | None) -> SpanState | None:
    """What the machine was like, as a record has it."""
    return None if record is None else schema.load(SpanState, record["state"], "state")


def _load(session: Mapping[str, Any]) -> str:
    load = session["environment"]["load_average"]
    return "unknown" if load is None else f"{load[0]:.1f}"


def sessions_told(results: Results) -> tuple[str, ...]:
    """Figures of one report that were not measured in one go."""
    told = []
    runs = results.sessions()
    if len(runs) > 1:
        times = ", ".join(f"{one['timestamp_utc']} (load {_load(one)})" for one in runs)
        told.append(
            f"sessions: the bench was resumed; its cells were measured in runs of {times}; the "
            "environment is that of the first"
        )
    if results.last("split") is not None:
        told.append(
            "turns: memory does not hold all files at once; they took turns in groups, one group "
            "after the other, between which the machine may have drifted"
        )
    return tuple(told)


def transfer_of(
    measured: Sequence[Measured], config: BenchConfig
) -> tuple[tuple[TransferGrid, ...], tuple[str, ...] | None, tuple[str, ...]]:
    """Grids whose targets are files that take λ as an input, one per width; which files; warnings.

    Of several files of a width it is the first, on a CPU the one in float32 if there is one: half
    precision is only emulated there.
    """
    files: dict[float, list[Measured]] = {}
    for one in measured:
        if one.figures.artifact.pinned_lambda is None:
            files.setdefault(one.figures.artifact.width, []).append(one)
    if not config.on_gpu:
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


def meanings(config: BenchConfig) -> dict[str, Any]:
    """What the figures are, in words."""
    words = {
        "latency": "host time of Runner.infer, numpy arrays in and out",
        "throughput": "one single-threaded request in flight per worker",
        "percentiles": "linear interpolation between order statistics",
        "energy_mj": (
            "per image, latency mode (one request in flight): mean power of power.scope over the "
            "measured parts times their duration; what is drawn at rest is not taken off"
        ),
    }
    if config.on_gpu:
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


def with_engine_versions(environment: Environment, measured: Sequence[Measured]) -> Environment:
    """With what the engines say they run on: a system's TensorRT need not be a pip package."""
    found = {
        name.replace("_", "-"): version
        for one in measured
        if one.figures.artifact.format in LIBRARIES
        for name, version in one.versions.items()
    }
    versions = {**environment.library_versions, **found}
    return dataclasses.replace(environment, library_versions=versions)
