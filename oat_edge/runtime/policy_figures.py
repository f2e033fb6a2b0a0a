"""What a policy knows of each width beforehand, from a bench report of this device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import InputError
from oat_edge.runtime.artifacts import ENGINES, artifacts_for, widths_for
from oat_edge.runtime.recipe import PRECISIONS

if TYPE_CHECKING:
    from oat_edge.bench.report import Report, Row
    from oat_edge.bench.statistics import LatencyMs

REPORT = "report.json"
REMEDY = "measure with `oat-edge bench`"
# Where a bench was too short for percentiles. Short benches of idle machines have p95 at 1.1 to
# 1.5 times the median; too much is soon put right by what is seen.
OVER_MEDIAN = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One λ of one width, as the bench measured it."""

    lam: float
    standard: float
    """Standard accuracy, a share."""
    robust: float
    """Worst-case robust accuracy, a share."""

    def expected(self, threat: float) -> float:
        """Accuracy to be expected if this share of requests is attacked."""
        return (1.0 - threat) * self.standard + threat * self.robust


@dataclass(frozen=True, kw_only=True, slots=True)
class WidthFigures:
    """One width, as the bench measured it."""

    width: float
    settings: tuple[Setting, ...]
    """By λ, growing; one or more."""
    quiet_ms: dict[int, float]
    """By images per request: what a request nearly always takes on the quiet device."""


def load_report(bundle: Bundle, report: Report | str | Path | None, device: str) -> Report:
    """The report that a policy for `bundle` on `device` is to go by; None: the bundle's own.

    Raises `InputError` if it is of another checkpoint or another kind of device.
    """
    # Here, because the bench imports the runtime.
    from oat_edge.bench.report import Report

    path = bundle.path / REPORT if report is None else report
    found = path if isinstance(path, Report) else Report.load(Path(path))
    if found.bundle.checkpoint_sha256 != bundle.checkpoint_sha256:
        raise InputError(
            f"the report is of checkpoint {found.bundle.checkpoint_sha256[:12]}…, bundle "
            f"{bundle.path.name} of {bundle.checkpoint_sha256[:12]}…: {REMEDY}"
        )
    kind = found.environment.device.kind
    if kind != device:
        raise InputError(
            f"the report was measured on {kind}, the policy is to run on {device}: {REMEDY}"
        )
    return found


def choose_files(
    bundle: Bundle,
    report: Report,
    *,
    device: str,
    format: str | None = None,
    precision: str | None = None,
) -> list[tuple[Artifact, WidthFigures]]:
    """One file for each width that the report has latency and accuracies of, widths growing.

    Of several an engine, then the smallest precision, as `open_runner` takes them. Raises
    `InputError` if no width is left.
    """
    formats = None if format is None else (format,)
    precisions = None if precision is None else (precision,)
    widths = widths_for(bundle, device=device, formats=formats, precisions=precisions)
    # Without a width it says what there is.
    wanted = widths or bundle.spec.widths
    fitting = artifacts_for(bundle, wanted, device=device, formats=formats, precisions=precisions)
    chosen = []
    for width in widths:
        candidates = [
            (artifact, figures)
            for artifact in fitting
            if artifact.width == width and artifact.pinned_lambda is None
            if (figures := figures_of(artifact, report.rows)) is not None
        ]
        if candidates:
            chosen.append(max(candidates, key=lambda found: _rank(found[0])))
    if not chosen:
        files = ", ".join(artifact.file for artifact in fitting if artifact.pinned_lambda is None)
        raise InputError(
            f"the report has latency with SA and RA of none of {files or 'the files'}: export "
            "attacks (oat-edge export --attack-samples 256) and measure with `oat-edge bench`"
        )
    return chosen


def figures_of(artifact: Artifact, rows: Sequence[Row]) -> WidthFigures | None:
    """What the rows of this very file say; None if latency or accuracies are not among it."""
    settings: dict[float, Setting] = {}
    quiet_ms: dict[int, float] = {}
    for row in rows:
        # A deferred engine has no hash yet: then the name must do.
        if row.artifact != artifact.file or artifact.sha256 not in ("", row.sha256):
            continue
        if row.latency_ms is not None:
            ms = upper_ms(row.latency_ms)
            if not ms > 0.0:
                raise InputError(f"the report's latency of {row.artifact} is {ms} ms: {REMEDY}")
            quiet_ms[row.batch] = ms
        if row.standard_accuracy is not None and row.worst is not None:
            settings[row.lam] = Setting(
                lam=row.lam, standard=row.standard_accuracy, robust=row.worst
            )
    if not settings or not quiet_ms:
        return None
    return WidthFigures(
        width=artifact.width,
        settings=tuple(settings[lam] for lam in sorted(settings)),
        quiet_ms=quiet_ms,
    )


def upper_ms(latency_ms: LatencyMs) -> float:
    """What a request nearly always takes at most: p95, or a margin over the median."""
    return latency_ms.p50 * OVER_MEDIAN if latency_ms.p95 is None else latency_ms.p95


def _rank(artifact: Artifact) -> tuple[bool, int]:
    return artifact.format in ENGINES, PRECISIONS.index(artifact.precision_requested)
