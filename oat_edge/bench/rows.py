"""From measured figures to the rows and comparisons of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from oat_edge.bench.cells import Cell, Kind
from oat_edge.bench.config import PACK, BenchConfig
from oat_edge.bench.lambda_cost import lambda_cost
from oat_edge.bench.latency import LatencySamples
from oat_edge.bench.memory import MemoryCost
from oat_edge.bench.report import LambdaCost, LambdaFlatness, Row
from oat_edge.bench.statistics import DeviceMs, LatencyMs, lambda_spread
from oat_edge.bundle import Artifact
from oat_edge.calib.operating_points import on_operating_front
from oat_edge.device.state import MonitorFacts, Power, SpanState, State, power_of, state_of
from oat_edge.evaluation.accuracy import Accuracy
from oat_edge.evaluation.pack_set import TRANSFER, WORST

NO_ACCURACY = "standard_accuracy, robust_accuracy, num_samples, pareto"
ALONE = "measured alone, not in turns with the others: beside them its process was lost"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """All that was measured of one artifact; what failed is missing."""

    artifact: Artifact
    backend: str
    precision: str
    samples: dict[int, LatencySamples]
    """By batch."""
    throughput_ips: dict[int, float]
    """By batch."""
    memory: dict[int, MemoryCost]
    """By batch."""
    accuracy: dict[float, Accuracy]
    """By λ."""
    pack_lambdas: tuple[float, ...]
    """Every λ that an attack pack of this width holds."""
    batches: tuple[int, ...]
    """All that should have been measured."""
    spans: dict[int, tuple[SpanState, ...]] = field(default_factory=dict)
    """By batch, what the machine was like while its parts were measured."""
    on_gpu: bool = False
    remarks: tuple[str, ...] = ()
    """What the runner says that its figures must carry."""
    alone: tuple[int, ...] = ()
    """Batches that were measured by themselves, after they had been lost beside the others."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why something is missing, by the cell's name."""

    def why_not(self, kind: Kind, batch: int | None = None) -> str | None:
        """Why a cell of this artifact failed; None if it did not."""
        return self.failures.get(Cell(kind, self.artifact, batch).name)


def make_rows(
    figures: Sequence[Figures],
    lambdas: Sequence[float],
    knots: Sequence[float],
    config: BenchConfig,
    monitor: MonitorFacts,
    idle: SpanState | None,
) -> tuple[tuple[Row, ...], tuple[LambdaFlatness, ...], tuple[LambdaCost, ...]]:
    """Rows, one per (artifact, λ, batch), and what λ does to latency.

    lambdas: those that get a row; knots: those that the latency samples went round.
    A file with a pinned λ has its own λ only. `pareto` compares rows of one batch, and files
    with a pinned λ among themselves: they have given up the knob for their speed. What failed
    has rows without times. monitor, idle: how the machine was watched, and what it was at rest.
    """
    p50_ms: dict[tuple[str, int], float] = {}
    rows: list[Row] = []
    flatness: list[LambdaFlatness] = []
    for figure in figures:
        pinned = figure.artifact.pinned_lambda
        for batch in figure.batches:
            samples = figure.samples.get(batch)
            timing = _Timing(figure, batch, config, monitor, idle)
            if samples is not None and timing.latency_ms is not None:
                p50_ms[figure.artifact.file, batch] = timing.latency_ms.p50
                if pinned is None:
                    flat, uneven = _flatness(figure, batch, samples, knots, config)
                    flatness.append(flat)
                    timing.warnings += uneven
            for lam in lambdas if pinned is None else (pinned,):
                rows.append(_row(figure, lam, batch, timing, config))
    return (
        _mark_front(_with_unequal_attacks_told(rows), figures),
        tuple(flatness),
        lambda_cost([(figure.artifact, figure.precision) for figure in figures], p50_ms),
    )


class _Timing:
    """What all rows of one (artifact, batch) share: all but the accuracy."""

    def __init__(
        self,
        figure: Figures,
        batch: int,
        config: BenchConfig,
        monitor: MonitorFacts,
        idle: SpanState | None,
    ) -> None:
        self.latency_ms: LatencyMs | None = None
        self.status: Literal["ok", "unstable", "failed"] = "failed"
        self.device_ms: DeviceMs | None = None
        self.power: Power | None = None
        self.state: State | None = None
        self.warnings: list[str] = []
        samples, spans = figure.samples.get(batch), figure.spans.get(batch, ())
        if samples is None:
            reason = figure.why_not("latency", batch) or "it was not measured"
            self.warnings = [f"latency_ms, throughput_ips, energy_mj: {reason}"]
            self._tell_memory(figure, batch)
            return
        if batch not in figure.throughput_ips:
            reason = figure.why_not("throughput", batch) or "it was not measured"
            self.warnings.append(f"throughput_ips: {reason}")
        self.latency_ms = LatencyMs.from_ns(samples.latency_ns)
        self.warnings += self.latency_ms.warnings()
        if not samples.warmup_agreed:
            self.warnings.append(
                f"warm-up: window medians did not agree within {config.agree:.0%} "
                f"in {config.warmup_cap_s:g} s"
            )
        self._tell_memory(figure, batch)
        if samples.device_ms is not None:
            self.device_ms = DeviceMs.from_samples(samples.device_ms)
        elif figure.on_gpu:
            self.warnings.append(f"device_ms: {figure.backend} does not tell times on the device")
        images = batch * len(samples.latency_ns)
        self.power, no_power = power_of(spans, images=images, facts=monitor, idle=idle)
        state, troubles = state_of(spans, on_gpu=figure.on_gpu)
        self.state = state
        self.warnings += [*troubles, *figure.remarks]
        if state.clock_note is not None:
            self.warnings.append(f"state.clock_mhz: {state.clock_note}")
        if batch in figure.alone:
            self.warnings.append(ALONE)
        if no_power is not None:
            self.warnings.append(f"energy_mj: {no_power}")
        self.status = "ok" if self.latency_ms.stable and not troubles else "unstable"

    def _tell_memory(self, figure: Figures, batch: int) -> None:
        memory = figure.memory.get(batch)
        if memory is None:
            reason = figure.why_not("memory", batch) or "it was not measured"
            self.warnings.append(f"memory_mb: {reason}")
            return
        if memory.added_mb[batch] is None:
            self.warnings.append(f"memory_mb: {memory.reason}")
        if figure.on_gpu and (memory.gpu_added_mb or {}).get(batch) is None:
            self.warnings.append(f"gpu_memory_mb: {memory.gpu_reason}")


def _row(figure: Figures, lam: float, batch: int, timing: _Timing, config: BenchConfig) -> Row:
    accuracy = figure.accuracy.get(lam)
    warnings = timing.warnings
    robust: dict[str, float | None] = {WORST: None}
    if accuracy is None:
        failed = figure.why_not("accuracy")
        reason = (
            _no_pack(figure, lam, NO_ACCURACY) if failed is None else f"{NO_ACCURACY}: {failed}"
        )
        warnings = [*warnings, reason]
    else:
        robust = {**accuracy.robust_accuracy}
        if PACK in config.attacks and lam not in figure.pack_lambdas:
            # Square and transfer alone would make this λ look more robust than its neighbours.
            robust[WORST] = None
            warnings = [*warnings, _no_pack(figure, lam, f"robust_accuracy.{WORST}, pareto")]
    artifact = figure.artifact
    memory = figure.memory.get(batch)
    return Row(
        artifact=artifact.file,
        sha256=artifact.sha256,
        format=artifact.format,
        backend=figure.backend,
        width=artifact.width,
        lam=lam,
        precision=figure.precision,
        batch=batch,
        latency_ms=timing.latency_ms,
        throughput_ips=figure.throughput_ips.get(batch),
        memory_mb=memory.added_mb[batch] if memory else None,
        energy_mj=timing.power.energy_mj if timing.power else None,
        standard_accuracy=accuracy.standard_accuracy if accuracy else None,
        robust_accuracy=robust,
        num_samples=accuracy.num_samples if accuracy else None,
        pareto=None,
        status=timing.status,
        warnings=tuple(warnings),
        device_ms=timing.device_ms,
        gpu_memory_mb=((memory.gpu_added_mb if memory else None) or {}).get(batch),
        power=timing.power,
        state=timing.state,
    )


def _no_pack(figure: Figures, lam: float, what: str) -> str:
    if not figure.pack_lambdas:
        return (
            f"{what}: the bundle has no attack pack of width {figure.artifact.width:g}; "
            f"oat-edge export --width {figure.artifact.width:g} --attack-samples 256"
        )
    have = ", ".join(f"{value:g}" for value in figure.pack_lambdas)
    return (
        f"{what}: no attack pack holds λ={lam:g}; choose --lambda from {have}, "
        "or --attack square for any"
    )


def _with_unequal_attacks_told(rows: Sequence[Row]) -> list[Row]:
    """Worst cases over different attacks are compared with care."""
    attacks = {name for row in rows if row.worst is not None for name in row.robust_accuracy}
    told = []
    for row in rows:
        missing = sorted(attacks - row.robust_accuracy.keys() - {TRANSFER})
        if row.worst is not None and missing:
            text = f"robust_accuracy: other rows were also attacked by {', '.join(missing)}"
            row = dataclasses.replace(row, warnings=(*row.warnings, text))
        told.append(row)
    return told


def _flatness(
    figure: Figures,
    batch: int,
    samples: LatencySamples,
    knots: Sequence[float],
    config: BenchConfig,
) -> tuple[LambdaFlatness, list[str]]:
    spread = lambda_spread(samples.latency_ns, samples.lambda_index, seed=config.seed)
    entry = LambdaFlatness(
        artifact=figure.artifact.file,
        batch=batch,
        lambdas=tuple(knots),
        p50_ms=spread.p50_ms if spread else None,
        max_relative_spread=spread.max_relative_spread if spread else None,
        p_value=spread.p_value if spread else None,
        num_samples=spread.num_samples if spread else None,
        reason=None if spread else "needs two values of λ and two requests at each",
    )
    if spread is None or spread.flat:
        return entry, []
    uneven = f"λ changes the latency by {spread.max_relative_spread:.1%} (p={spread.p_value:.3f})"
    return entry, [uneven]


def _mark_front(rows: Sequence[Row], figures: Sequence[Figures]) -> tuple[Row, ...]:
    pinned = {f.artifact.file for f in figures if f.artifact.pinned_lambda is not None}
    groups: dict[tuple[int, bool], list[int]] = {}
    for index, row in enumerate(rows):
        if None not in (row.worst, row.standard_accuracy, row.latency_ms):
            groups.setdefault((row.batch, row.artifact in pinned), []).append(index)
    marked = list(rows)
    for indices in groups.values():
        group = [rows[index] for index in indices]
        front = on_operating_front(
            [row.latency_ms.p50 for row in group if row.latency_ms],
            [row.worst for row in group],
            [row.standard_accuracy for row in group],
        )
        for index, on_front in zip(indices, front, strict=True):
            marked[index] = dataclasses.replace(rows[index], pareto=bool(on_front))
    return tuple(marked)
