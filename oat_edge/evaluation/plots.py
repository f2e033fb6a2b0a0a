"""Accuracy along λ under every attack, one panel per width; and the transfer grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oat_edge.bench.heatmap import plot_transfer, transfer_paths
from oat_edge.bench.style import (
    COLOURS,
    INK,
    LETTERS_PER_INCH,
    MARKERS,
    PALE_INK,
    SEPARATOR,
    STYLE,
    check_suffix,
    format_eps,
    save_figure,
    wrapped,
)
from oat_edge.evaluation.config import GRAPH_ATTACK
from oat_edge.evaluation.pack_set import TRANSFER, WORST
from oat_edge.evaluation.report import EvalReport, EvalRow
from oat_edge.require import require

PANELS_PER_ROW = 3
# Attacks as people write them, in the order of tables and legends.
TITLES = {
    "pgd20": "PGD-20",
    GRAPH_ATTACK: "PGD-20 on int8",
    "apgd": "APGD",
    "autoattack": "AutoAttack",
    "square": "Square",
    TRANSFER: "transfer",
}
# Of each of these, its places among COLOURS and MARKERS. One attack on two files has one colour.
LOOKS = ((0, 0), (0, 5), (4, 1), (2, 2), (5, 3), (3, 4))


def plot_evaluation(report: EvalReport, path: Path) -> tuple[Path, ...]:
    """Draw `path` (.png, 300 dpi, or .svg) and a heat map beside it for every transfer grid.

    Files with a pinned λ are left out. Returns what was written. Raises `InputError` for another
    suffix, `DependencyError` without matplotlib.
    """
    check_suffix(path)
    matplotlib = require("matplotlib", purpose="drawing plots")
    figures = require("matplotlib.figure", purpose="drawing plots")
    rows = [row for row in report.rows if not row.pinned] or list(report.rows)
    panels_of: dict[tuple[float, str, str], list[EvalRow]] = {}
    for row in sorted(rows, key=lambda row: (row.width, row.lam)):
        panels_of.setdefault((row.width, row.format, row.precision), []).append(row)
    several = len({(format, precision) for _, format, precision in panels_of}) > 1
    across = min(len(panels_of), PANELS_PER_ROW)
    down = -(-len(panels_of) // across)
    with matplotlib.rc_context(STYLE):
        size = 2.1 + 1.7 * across, 2.7 * down + 0.6
        figure = figures.Figure(figsize=size, layout="constrained")
        panels = figure.subplots(down, across, sharey=True, squeeze=False).flat
        # Takes no panel more than it draws.
        for (width, format, precision), axes in zip(panels_of, panels, strict=False):
            _draw_panel(axes, panels_of[width, format, precision])
            kind = f", {format} {precision}" if several else ""
            axes.set(title=f"width {width:g}{kind}", xlabel="λ")
        for axes in list(panels):  # what is left of the last line
            axes.set_visible(False)
        figure.axes[0].set_ylabel("Accuracy (%)")
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            names,
            loc="outside upper center",
            ncols=len(names) if across == PANELS_PER_ROW else -(-len(names) // 2),
            fontsize=8,
            handlelength=1.7,
            handletextpad=0.5,
            columnspacing=1.3,
        )
        caption = "\n".join(wrapped(_caption(report), int(size[0] * LETTERS_PER_INCH)))
        figure.supxlabel(caption, fontsize=7.5, color=PALE_INK)
        save_figure(figure, path)
    beside = transfer_paths(path, [grid.attack for grid in report.transfer])
    for grid, place in zip(report.transfer, beside, strict=True):
        plot_transfer(grid, place, SEPARATOR.join([f"attack {grid.attack}", *_facts(report)]))
    return path, *beside


def _draw_panel(axes: Any, rows: list[EvalRow]) -> None:
    # Knots are far from even: side by side they are told apart.
    x = np.arange(len(rows))
    _draw_band(axes, x, [row.standard_accuracy_interval for row in rows], INK)
    axes.plot(
        x,
        [100 * row.standard_accuracy for row in rows],
        color=INK,
        marker="P",
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        linewidth=1.2,
        label="standard",
    )
    _draw_band(axes, x, [row.robust_accuracy_interval[WORST] for row in rows], COLOURS[1])
    # An attack looks the same in every plot, whatever else was run.
    for name, (colour, marker) in zip(TITLES, LOOKS, strict=True):
        if not all(name in row.robust_accuracy for row in rows):
            continue
        axes.plot(
            x,
            [100 * row.robust_accuracy[name] for row in rows],
            color=COLOURS[colour],
            marker=MARKERS[marker],
            markersize=3.8,
            markeredgecolor="white",
            markeredgewidth=0.5,
            linewidth=0.9,
            label=TITLES[name],
        )
    axes.plot(
        x,
        [100 * row.robust_accuracy[WORST] for row in rows],
        color=COLOURS[1],
        linewidth=1.6,
        linestyle=(0, (4, 1.5)),
        marker="_" if len(rows) == 1 else None,  # a line of one point is none
        markersize=14,
        markeredgewidth=1.6,
        label="worst case",
    )
    axes.set(ylim=(-2, 102), xlim=(-0.3, len(rows) - 0.7))
    axes.set_xticks(x, [f"{row.lam:g}" for row in rows])


def _draw_band(axes: Any, x: Any, spans: list[tuple[float, ...]], colour: str) -> None:
    low, high = 100 * np.array(spans).T
    if len(x) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    else:
        axes.vlines(x, low, high, color=colour, alpha=0.4, linewidth=1.0)


def _caption(report: EvalReport) -> str:
    """Images, ε and how far to trust it, in one line."""
    return SEPARATOR.join([*_facts(report), report.settings["mode"], "bands: 95 % intervals"])


def _facts(report: EvalReport) -> list[str]:
    settings = report.settings
    return [
        f"n = {settings['num_samples']:,}",
        f"ε = {format_eps(settings['eps'])}",
        f"seed {settings['seed']}",
    ]
