"""From measured figures to the rows and comparisons of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from oat_edge.bench.config import PACK, BenchConfig
from oat_edge.bench.lambda_cost import lambda_cost
from oat_edge.bench.latency import LatencySamples
from oat_edge.bench.memory import MemoryCost
from oat_edge.bench.report import LambdaCost, LambdaFlatness, Row
from oat_edge.bench.statistics import DeviceMs, LatencyMs, lambda_spread
from oat_edge.bundle import Artifact
from oat_edge.calib.operating_points import on_operating_front
from oat_edge.evaluation.accuracy import Accuracy
from oat_edge.evaluation.pack_set import TRANSFER, WORST

NO_ACCURACY = "standard_accuracy, robust_accuracy, num_samples, pareto"
NO_ENERGY = "energy_mj: energy is not measured on this device yet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """All that was measured of one artifact."""

    artifact: Artifact
    backend: str
    precision: str
    samples: dict[int, LatencySamples]
    """By batch."""
    throughput_ips: dict[int, float]
    """By batch."""
    memory: MemoryCost
    accuracy: dict[float, Accuracy]
    """By λ."""
    pack_lambdas: tuple[float, ...]
    """Every λ that an attack pack of this width holds."""
    on_gpu: bool = False
    remarks: tuple[str, ...] = ()
    """What the runner says that its figures must carry."""


def make_rows(
    figures: Sequence[Figures],
    lambdas: Sequence[float],
    knots: Sequence[float],
    config: BenchConfig,
) -> tuple[tuple[Row, ...], tuple[LambdaFlatness, ...], tuple[LambdaCost, ...]]:
    """Rows, one per (artifact, λ, batch), and what λ does to latency.

    lambdas: those that get a row; knots: those that the latency samples went round.
    A file with a pinned λ has its own λ only. `pareto` compares rows of one batch, and files
    with a pinned λ among themselves: they have given up the knob for their speed.
    """
    p50_ms: dict[tuple[str, int], float] = {}
    rows: list[Row] = []
    flatness: list[LambdaFlatness] = []
    for figure in figures:
        pinned = figure.artifact.pinned_lambda
        for batch, samples in figure.samples.items():
            latency_ms = LatencyMs.from_ns(samples.latency_ns)
            p50_ms[figure.artifact.file, batch] = latency_ms.p50
            warnings = _timing_warnings(figure, batch, samples, latency_ms, config)
            if pinned is None:
                flat, uneven = _flatness(figure, batch, samples, knots, config)
                flatness.append(flat)
                warnings += uneven
            for lam in lambdas if pinned is None else (pinned,):
                rows.append(_row(figure, lam, batch, latency_ms, warnings, config))
    return (
        _mark_front(_with_unequal_attacks_told(rows), figures),
        tuple(flatness),
        lambda_cost([(figure.artifact, figure.precision) for figure in figures], p50_ms),
    )


def _row(
    figure: Figures,
    lam: float,
    batch: int,
    latency_ms: LatencyMs,
    warnings: list[str],
    config: BenchConfig,
) -> Row:
    accuracy = figure.accuracy.get(lam)
    robust: dict[str, float | None] = {WORST: None}
    if accuracy is None:
        warnings = [*warnings, _no_pack(figure, lam, NO_ACCURACY)]
    else:
        robust = {**accuracy.robust_accuracy}
        if PACK in config.attacks and lam not in figure.pack_lambdas:
            # Square and transfer alone would make this λ look more robust than its neighbours.
            robust[WORST] = None
            warnings = [*warnings, _no_pack(figure, lam, f"robust_accuracy.{WORST}, pareto")]
    artifact = figure.artifact
    device_ms = figure.samples[batch].device_ms
    return Row(
        artifact=artifact.file,
        sha256=artifact.sha256,
        format=artifact.format,
        backend=figure.backend,
        width=artifact.width,
        lam=lam,
        precision=figure.precision,
        batch=batch,
        latency_ms=latency_ms,
        throughput_ips=figure.throughput_ips[batch],
        memory_mb=figure.memory.added_mb[batch],
        energy_mj=None,
        standard_accuracy=accuracy.standard_accuracy if accuracy else None,
        robust_accuracy=robust,
        num_samples=accuracy.num_samples if accuracy else None,
        pareto=None,
        status="ok" if latency_ms.stable else "unstable",
        warnings=tuple(warnings),
        device_ms=None if device_ms is None else DeviceMs.from_samples(device_ms),
        gpu_memory_mb=(figure.memory.gpu_added_mb or {}).get(batch),
    )


def _timing_warnings(
    figure: Figures,
    batch: int,
    samples: LatencySamples,
    latency_ms: LatencyMs,
    config: BenchConfig,
) -> list[str]:
    warnings = latency_ms.warnings()
    if not samples.warmup_agreed:
        warnings.append(
            f"warm-up: window medians did not agree within {config.agree:.0%} "
            f"in {config.warmup_cap_s:g} s"
        )
    if figure.memory.added_mb[batch] is None:
        warnings.append(f"memory_mb: {figure.memory.reason}")
    if figure.on_gpu:
        if (figure.memory.gpu_added_mb or {}).get(batch) is None:
            warnings.append(f"gpu_memory_mb: {figure.memory.gpu_reason}")
        if samples.device_ms is None:
            warnings.append(f"device_ms: {figure.backend} does not tell times on the device")
    return [*warnings, *figure.remarks, NO_ENERGY]


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
        if row.worst is not None and row.standard_accuracy is not None:
            groups.setdefault((row.batch, row.artifact in pinned), []).append(index)
    marked = list(rows)
    for indices in groups.values():
        group = [rows[index] for index in indices]
        front = on_operating_front(
            [row.latency_ms.p50 for row in group],
            [row.worst for row in group],
            [row.standard_accuracy for row in group],
        )
        for index, on_front in zip(indices, front, strict=True):
            marked[index] = dataclasses.replace(rows[index], pareto=bool(on_front))
    return tuple(marked)
