"""Bench reports as operating points to choose among, one device at a time.

Points of several devices are never mixed: a latency means nothing on another machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oat_edge.bench.config import SQUARE
from oat_edge.bench.report import REMEDY, Report, Row
from oat_edge.calib.goal import Percentile
from oat_edge.calib.points import Point
from oat_edge.errors import InputError
from oat_edge.evaluation.pack_set import TRANSFER, WORST
from oat_edge.files import read_json, sha256_file
from oat_edge.operating_point import OperatingPoint

# As `oat_edge.remote.fleet` writes it; that module would bring all of SSH with it.
FLEET_SCHEMA = "oat-edge/fleet/1"
REPORT = "report.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One report of one device."""

    path: Path
    sha256: str
    name: str
    """What the device is called: by the file's name, by the fleet, or "cpu", "cuda", "jetson"."""
    report: Report

    @property
    def device(self) -> tuple[str | None, ...]:
        """What must be the same for figures to be compared."""
        of = self.report.environment
        return (
            self.name, of.device.kind, of.device.board, of.device.model, of.device.host,
            of.device.machine, of.power_mode,
        )  # fmt: skip

    @property
    def label(self) -> str:
        """The device for people."""
        of = self.report.environment
        mode = f", {of.power_mode}" if of.power_mode else ""
        return f"{self.name} ({of.device.board or of.device.model or of.device.machine}{mode})"

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU ran the network."""
        settings = self.report.settings
        return settings.get("device", "cpu") != "cpu" and settings.get("processor") != "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """All points of one device, and what has to be said of them."""

    sources: tuple[Source, ...]
    """One or more, oldest first."""
    points: tuple[Point, ...]
    num_failed: int
    """Rows whose measurement failed: they are no points."""
    num_pinned: int
    """Rows of files with λ folded in, where they were not asked for."""
    warnings: tuple[str, ...]

    @property
    def newest(self) -> Source:
        """The report that was measured last."""
        return self.sources[-1]


def read_reports(paths: Sequence[Path]) -> list[Source]:
    """Every report in these files; of a folder its report.json. `InputError` on any damage."""
    return [source for path in paths for source in _read(path / REPORT if path.is_dir() else path)]


def _read(path: Path) -> Iterable[Source]:
    value = read_json(path, what="bench report", remedy=REMEDY)
    digest = sha256_file(path)
    if value.get("schema") != FLEET_SCHEMA:
        report = _report(value, path)
        name = path.stem.removeprefix("report-") if path.stem.startswith("report-") else None
        kind = str(report.settings.get("device", report.environment.device.kind))
        yield Source(path=path, sha256=digest, name=name or kind, report=report)
        return
    targets = value.get("targets")
    if not isinstance(targets, list) or not all(isinstance(one, dict) for one in targets):
        raise InputError(f"{path} has no list of targets: {REMEDY}")
    there = [one for one in targets if one.get("report") is not None]
    if not there:
        raise InputError(f"{path} holds no report, all its devices failed: {REMEDY}")
    for one in there:
        report = _report(one["report"], path)
        yield Source(path=path, sha256=digest, name=str(one.get("name")), report=report)


def _report(value: Any, path: Path) -> Report:
    """Read with every figure that a choice goes by checked; damage names the file."""
    try:
        report = Report.from_json(value)
        for row in report.rows:
            OperatingPoint(row.width, row.lam)
            if row.num_samples is not None and row.num_samples < 1:
                raise InputError(f"{row.artifact}: num_samples is {row.num_samples}: {REMEDY}")
            times = row.latency_ms
            figures = (row.energy_mj, row.memory_mb, row.gpu_memory_mb,
                       *(() if times is None else (times.p50, times.p95, times.p99)))  # fmt: skip
            if any(figure is not None and figure < 0 for figure in figures):
                raise InputError(f"{row.artifact}: a figure is below 0: {REMEDY}")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return report


def of_device(sources: Sequence[Source], name: str | None) -> list[Source]:
    """The reports of one device, oldest first.

    name: of the device, or its label; None where there is only one. Raises `InputError` if that
    leaves several devices, none, or several networks.
    """
    labels = list(dict.fromkeys(source.label for source in sources))
    kept = [source for source in sources if name in (None, source.name, source.label)]
    if not kept:
        raise InputError(f"device is '{name}': the reports are of {', '.join(labels)}")
    found = list(dict.fromkeys(source.device for source in kept))
    if len(found) > 1:
        names = list(dict.fromkeys(source.name for source in kept))
        choices = names if len(names) == len(found) else [source.label for source in kept]
        listed = ", ".join(f"--device '{one}'" if " " in one else f"--device {one}"
                           for one in dict.fromkeys(choices))  # fmt: skip
        raise InputError(
            f"the reports are of {len(found)} devices, which are not compared: choose with {listed}"
        )
    networks = {source.report.bundle.checkpoint_sha256: source for source in kept}
    if len(networks) > 1:
        named = " and ".join(
            f"{one.report.bundle.run} ({digest[:12]}…, {one.path})"
            for digest, one in networks.items()
        )
        raise InputError(f"the reports are of {len(networks)} networks, {named}: name one's alone")
    return sorted(kept, key=lambda source: source.report.environment.timestamp_utc)


def measured_points(
    sources: Sequence[Source],
    *,
    percentile: Percentile = "p50",
    batch: int | None = None,
    precisions: Sequence[str] | None = None,
    widths: Sequence[float] | None = None,
    pinned: bool = False,
) -> Measured:
    """The points of one device's reports, oldest first; what was measured twice counts as last.

    batch: images per request; None is the smallest that was measured. precisions, widths: None is
    all. pinned: also files with λ folded in. Raises `InputError` where nothing is left.
    """
    rows = [(source, row) for source in sources for row in source.report.rows]
    if not rows:
        raise InputError(f"report {sources[0].path} has no rows: {REMEDY}")
    batch = min(row.batch for _, row in rows) if batch is None else batch
    rows = _only(rows, "batch", lambda row: row.batch, (batch,))
    rows = _only(rows, "precision", lambda row: row.precision, precisions)
    rows = _only(rows, "width", lambda row: row.width, widths)
    num_rows = len(rows)
    folded = {id(source): _pinned_files(source) for source in sources}
    if not pinned:
        rows = [(source, row) for source, row in rows if row.artifact not in folded[id(source)]]
        if not rows:
            raise InputError("all rows are of files with λ folded in: pass --pinned to take them")
    num_failed = sum(row.status == "failed" for _, row in rows)
    points: dict[tuple[Any, ...], Point] = {}
    for source, row in rows:
        if row.status != "failed":
            is_pinned = row.artifact in folded[id(source)]
            point = _point(source, row, percentile, pinned=is_pinned)
            points[point.file, point.lam] = point
    if not points:
        raise InputError(f"all {num_failed} measurements failed: {REMEDY}")
    return Measured(
        sources=tuple(sources),
        points=tuple(_capped(point, points.values()) for point in points.values()),
        num_failed=num_failed,
        num_pinned=num_rows - len(rows),
        warnings=tuple(_unequal_attacks(points.values())),
    )


def _only(
    rows: list[tuple[Source, Row]],
    name: str,
    value: Callable[[Row], Any],
    wanted: Sequence[Any] | None,
) -> list[tuple[Source, Row]]:
    if wanted is None:
        return rows
    have = sorted({value(row) for _, row in rows})
    for one in wanted:
        if one not in have:
            raise InputError(f"{name} is {one}: the reports have {', '.join(map(str, have))}")
    return [(source, row) for source, row in rows if value(row) in wanted]


def _pinned_files(source: Source) -> set[str | None]:
    return {cost.pinned_artifact for cost in source.report.lambda_cost}


def _point(source: Source, row: Row, percentile: Percentile, *, pinned: bool) -> Point:
    threads = source.report.settings.get("threads")
    return Point(
        artifact=row.artifact,
        sha256=row.sha256,
        format=row.format,
        precision=row.precision,
        width=row.width,
        lam=row.lam,
        batch=row.batch,
        latency_ms=None if row.latency_ms is None else getattr(row.latency_ms, percentile),
        standard_accuracy=row.standard_accuracy,
        robust_accuracy=row.worst,
        energy_mj=row.energy_mj,
        memory_mb=_memory_mb(source, row),
        num_samples=row.num_samples,
        attacks=tuple(
            name
            for name, share in row.robust_accuracy.items()
            if name != WORST and share is not None
        ),
        threads=threads if isinstance(threads, int) and not source.on_gpu else None,
        pinned=pinned,
        unstable=row.status == "unstable",
    )


def _capped(point: Point, points: Iterable[Point]) -> Point:
    """A λ that Square attacked and no pack was crafted at counts as what it is, see `Point`."""
    if point.pinned or point.robust_accuracy is None or _crafted(point):
        return point
    shares = {
        one.lam: one.robust_accuracy
        for one in points
        if one.file == point.file and _crafted(one) and one.robust_accuracy is not None
    }
    below = max((lam for lam in shares if lam < point.lam), default=None)
    above = min((lam for lam in shares if lam > point.lam), default=None)
    if below is None or above is None:
        return point
    ceiling = max(shares[below], shares[above])
    return dataclasses.replace(point, between_knots=True, robust_ceiling=ceiling)


def _crafted(point: Point) -> bool:
    """Whether adversarial images were made for the very point."""
    return bool(set(point.attacks) - {TRANSFER, SQUARE})


def _memory_mb(source: Source, row: Row) -> float | None:
    """On a GPU both count; a Jetson has one memory for both, in which they overlap."""
    if not source.on_gpu:
        return row.memory_mb
    both = (row.memory_mb, row.gpu_memory_mb)
    known = [figure for figure in both if figure is not None]
    return max(known) if len(known) == len(both) else None


def _unequal_attacks(points: Iterable[Point]) -> list[str]:
    attacked = [point for point in points if point.robust_accuracy is not None]
    kinds = {tuple(name for name in one.attacks if name != TRANSFER) for one in attacked}
    if len(kinds) < 2:
        return []
    named = " and some under ".join(sorted(", ".join(kind) or "none" for kind in kinds))
    return [f"some robust accuracies are under {named}: they compare with care"]
