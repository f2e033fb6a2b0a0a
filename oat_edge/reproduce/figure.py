"""The figure of the comparison: SA against RA, OATS along λ against the dedicated networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oat_edge.bench.labels import Label, draw_labels
from oat_edge.bench.style import (
    COLOURS,
    INK,
    LETTERS_PER_INCH,
    MARKERS,
    PALE_INK,
    SEPARATOR,
    STYLE,
    check_suffix,
    count,
    format_eps,
    save_figure,
    wrapped,
)
from oat_edge.reproduce.report import ReproduceReport, Row
from oat_edge.reproduce.spread import Spread
from oat_edge.require import require

LABEL_PT = 7.0
SIZE_INCH = (5.2, 4.1)


def plot_comparison(report: ReproduceReport, path: Path) -> None:
    """Draw `path` (.png, 300 dpi, or .svg); bars are 95 % intervals, of width 1.

    Raises `InputError` for another suffix, `DependencyError` without matplotlib.
    """
    check_suffix(path)
    matplotlib = require("matplotlib", purpose="drawing plots")
    figures = require("matplotlib.figure", purpose="drawing plots")
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=SIZE_INCH, layout="constrained")
        axes = figure.subplots()
        series = _series(report)
        for name, rows, style in series:
            _draw(axes, name, rows, style)
        axes.set(xlabel="Standard accuracy (%)", ylabel="Robust accuracy (%)")
        axes.margins(0.07)
        figure.legend(loc="outside upper center", ncols=2 if len(series) > 3 else len(series))
        caption = "\n".join(wrapped(_caption(report), int(SIZE_INCH[0] * LETTERS_PER_INCH)))
        figure.supxlabel(caption, fontsize=7, color=PALE_INK)
        figure.draw_without_rendering()  # settles the layout, which the labels depend on
        _label(axes, series)
        save_figure(figure, path)


Series = list[tuple[str, list[Row], dict[str, Any]]]


# How a curve is drawn, by what it is compared with; a width has its colour in all of them.
CURVES: dict[str, dict[str, Any]] = {
    "oats": {"linestyle": "-"},
    "compared": {"linestyle": (0, (4, 2)), "markerfacecolor": "white"},
    "oat": {"linestyle": (0, (1, 1.5)), "markerfacecolor": "white"},
}
DEDICATED = {"color": INK, "marker": "*", "linestyle": "none"}


def _series(report: ReproduceReport) -> Series:
    """Dedicated networks as points of their own, all others as curves along λ."""
    series: Series = []
    widths = sorted({row.width for row in report.rows}, reverse=True)
    for name in dict.fromkeys(row.group for row in report.rows if row.kind != "dedicated"):
        for place, width in enumerate(widths):
            rows = [row for row in report.rows if (row.group, row.width) == (name, width)]
            if rows:
                look = {
                    "color": COLOURS[place % len(COLOURS)],
                    "marker": MARKERS[place % len(MARKERS)],
                    **CURVES[rows[0].kind],
                }
                series.append((_title(rows[0], several=len(widths) > 1), _by_lambda(rows), look))
    rows = _by_lambda([row for row in report.rows if row.kind == "dedicated"])
    if rows:
        series.append(("dedicated, one network per λ", rows, DEDICATED))
    return series


def _title(row: Row, *, several: bool) -> str:
    if row.kind == "oat":
        return f"OAT of width {row.width:g} alone"
    return row.group.replace("oats", "OATS", 1) + (f", width {row.width:g}" if several else "")


def _by_lambda(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.lam)


def _draw(axes: Any, name: str, rows: list[Row], style: dict[str, Any]) -> None:
    star = style["marker"] == "*"
    x, y = _percent(rows).T
    if rows[0].width == 1.0:  # those of every width would cover each other
        axes.errorbar(
            x,
            y,
            xerr=_reach([row.standard_accuracy for row in rows]),
            yerr=_reach([row.robust_accuracy for row in rows]),
            fmt="none",
            ecolor=style["color"],
            elinewidth=0.8,
            alpha=0.25,
            zorder=1.5,
        )
    axes.plot(
        x,
        y,
        label=name,
        markersize=9.5 if star else 4.8,
        markeredgecolor=style["color"] if "markerfacecolor" in style else "white",
        markeredgewidth=0.8,
        linewidth=1.2,
        zorder=3 if star else 2,
        **style,
    )


def _label(axes: Any, series: Series) -> None:
    """Write λ beside OATS at width 1 and the dedicated networks; the other curves run alike."""
    points_per_pixel = 72.0 / axes.figure.dpi
    lines, todo = [], []
    for _, rows, style in series:
        display = axes.transData.transform(_percent(rows)) * points_per_pixel
        if style["linestyle"] != "none":
            lines.append(display)
        if rows[0].width < 1.0 or rows[0].kind not in ("oats", "dedicated"):
            continue
        for row, data, place in zip(rows, _percent(rows), display, strict=True):
            end = row in (rows[0], rows[-1])
            name = f"λ={row.lam:g}" if end else f"{row.lam:g}"
            todo.append(Label(data, place, name, style["color"]))
    # The ends first, so that they win where space is short.
    todo.sort(key=lambda label: not label.text.startswith("λ"))
    draw_labels(axes, todo, lines, size_pt=LABEL_PT, marker=7.0)


def _percent(rows: list[Row]) -> Any:
    """(n, 2) SA and RA."""
    return 100 * np.array([(row.standard_accuracy.mean, row.robust_accuracy.mean) for row in rows])


def _reach(spreads: list[Spread]) -> Any:
    """(2, n) distances in percent from each mean down and up to the ends of its interval."""
    mean = np.array([one.mean for one in spreads])
    low, high = np.array([one.interval for one in spreads]).T
    return 100 * np.maximum([mean - low, high - mean], 0.0)


def _caption(report: ReproduceReport) -> str:
    evaluation, first = report.evaluation, report.models[0]
    seeds = len({model["seed"] for model in report.models})
    widths = {row.width for row in report.rows}
    return SEPARATOR.join(
        [
            f"{report.settings['data']}, {first['arch']}, {count(first['epochs'], 'epoch')}",
            count(seeds, "seed"),
            f"n = {evaluation['num_samples']:,} (SA: {report.rows[0].num_test:,}), "
            f"ε = {format_eps(evaluation['eps'])}",
            evaluation["mode"],
            f"bars: 95 % intervals{' (width 1)' if len(widths) > 1 else ''}",
        ]
    )
