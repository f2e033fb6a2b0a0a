"""The slowest layers of a bench report, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from oat_edge.bench.table import figures
from oat_edge.cli.console import plain_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from oat_edge.bench.profile import ArtifactProfile
    from oat_edge.bench.report import Report

SLOWEST = 10
# Columns of a table that fits into 100.
LONGEST_NAME, LONGEST_KIND = 56, 20


def print_layers(report: Report, console: Console) -> None:
    """Print a table per artifact that was profiled."""
    for profile in _largest(report.profile):
        console.print()
        console.print(_layers_title(profile, report), markup=False)
        console.print(_layers(profile))


def _largest(profiles: Sequence[ArtifactProfile]) -> list[ArtifactProfile]:
    """Of each artifact the one of the largest batch."""
    return list({one.artifact: one for one in sorted(profiles, key=lambda p: p.batch)}.values())


def _layers_title(profile: ArtifactProfile, report: Report) -> str:
    """What the table below is of. The layers of a profile add up to more than the latency."""
    text = (
        f"{profile.artifact}, batch {profile.batch}: the slowest of {len(profile.layers)} layers; "
        f"profiled, which slows it: {figures(profile.total_ms)} ms in all"
    )
    here = (profile.artifact, profile.batch)
    found = {
        row.latency_ms.p50
        for row in report.rows
        if (row.artifact, row.batch) == here and row.latency_ms is not None
    }
    return text + "".join(f"; latency p50 {figures(p50)} ms" for p50 in found)


def _layers(profile: ArtifactProfile) -> Table:
    """The slowest layers of one artifact."""
    slowest = sorted(profile.layers, key=lambda layer: layer.ms, reverse=True)[:SLOWEST]
    table = plain_table(None, ["Layer", "Kind", "ms", "Share %"], left=2)
    for layer in slowest:
        table.add_row(
            cut(layer.name, LONGEST_NAME),
            cut(layer.kind, LONGEST_KIND),
            figures(layer.ms),
            f"{100 * layer.share:.1f}",
        )
    return table


def cut(text: str, most: int) -> str:
    """`text` in at most `most` characters: names of layers differ at both ends."""
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"
