"""What stands below a plot: device, versions, images and attacks, in parts."""

from __future__ import annotations

from collections.abc import Sequence

from oat_edge.bench.report import Report, Row
from oat_edge.bench.style import SEPARATOR, format_eps
from oat_edge.evaluation.pack_set import WORST
from oat_edge.evaluation.transfer import TransferGrid


def transfer_caption(report: Report, grid: TransferGrid) -> str:
    """Device, n, attack and ε of a heat map, in one line."""
    settings = report.settings.get("attacks", {}).get(grid.attack, {})
    eps = f", ε = {format_eps(settings['eps'])}" if "eps" in settings else ""
    backends = dict.fromkeys(f"{row.backend} {row.precision}" for row in report.transfer_rows)
    return SEPARATOR.join(
        [
            _device(report),
            ", ".join(backends),
            f"attack {grid.attack}{eps}",
            f"n = {grid.num_samples:,}",
        ]
    )


def caption(report: Report, rows: Sequence[Row]) -> str:
    """Device, threads, n, attacks and ε, in one line."""
    attacks = sorted({name for row in rows for name in row.robust_accuracy} - {WORST})
    radii = {settings["eps"] for settings in report.settings.get("attacks", {}).values()}
    eps = ", ".join(format_eps(value) for value in sorted(radii))
    sizes = sorted({row.num_samples or 0 for row in rows})
    several = len({row.kind for row in rows}) > 1  # then the legend has the precisions
    backends = ", ".join(
        dict.fromkeys(row.backend if several else f"{row.backend} {row.precision}" for row in rows)
    )
    on_cpu = report.environment.device.kind == "cpu"
    threads = f", {report.settings.get('threads')} threads" if on_cpu else ""
    return SEPARATOR.join(
        [
            _device(report),
            f"{backends}{threads}",
            f"n = {'–'.join(f'{size:,}' for size in dict.fromkeys((sizes[0], sizes[-1])))}",
            f"attack {', '.join(attacks)}" + (f", ε = {eps}" if eps else ""),
            "bars: 95 % intervals",
        ]
    )


def _device(report: Report) -> str:
    device = report.environment.device
    return device.board or device.model or device.machine
