"""The trade-off plot: accuracy against robustness, and robustness against latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oat_edge.bench.captions import caption
from oat_edge.bench.labels import Float64, Label, draw_labels
from oat_edge.bench.report import Report, Row
from oat_edge.bench.style import (
    COLOURS,
    INK,
    LETTERS_PER_INCH,
    MARKERS,
    PALE_INK,
    STYLE,
    check_suffix,
    save_figure,
    wrapped,
)
from oat_edge.calib.operating_points import pareto_front
from oat_edge.errors import InputError
from oat_edge.evaluation.accuracy import wilson_interval
from oat_edge.evaluation.pack_set import WORST
from oat_edge.require import require

SIZE_INCH = 7.2, 3.5
LABEL_PT, MARKER_PT = 6.5, 4.5
COINCIDE_PT = MARKER_PT / 2
# Of long names, which say format and precision, too.
LEGEND_COLUMNS = 3


def plot_tradeoff(report: Report, path: Path) -> None:
    """Draw the report's smallest batch to a .png (300 dpi) or .svg file.

    Left: standard against worst-case robust accuracy, along λ, a line per width (and per format
    and precision, if there are several). Right: worst-case robust accuracy against median latency,
    with its Pareto front. Bars are 95 % Wilson intervals.
    Files with a pinned λ are left out. Raises `InputError` for another suffix and for a report
    without accuracies, `DependencyError` without matplotlib.
    """
    check_suffix(path)
    smallest = min((row.batch for row in report.knob_rows), default=None)
    rows = [
        row
        for row in report.knob_rows
        if row.batch == smallest and None not in (row.latency_ms, row.worst, row.standard_accuracy)
    ]
    if not rows:
        raise InputError(
            "the report has no rows with latency and accuracies to plot: export attacks "
            "(oat-edge export --attack-samples 256) and measure again"
        )
    matplotlib = require("matplotlib", purpose="drawing plots")
    figures = require("matplotlib.figure", purpose="drawing plots")
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=SIZE_INCH, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        lines = _lines(rows)
        _draw_accuracy(left, lines)
        front = _draw_latency(right, lines)
        handles, names = (
            a + b
            for a, b in zip(
                left.get_legend_handles_labels(), right.get_legend_handles_labels(), strict=True
            )
        )
        columns = len(names) if len(report.kinds) == 1 else LEGEND_COLUMNS
        figure.legend(handles, names, loc="outside upper center", ncols=columns)
        below = wrapped(caption(report, rows), int(SIZE_INCH[0] * LETTERS_PER_INCH))
        figure.supxlabel("\n".join(below), fontsize=7.5, color=PALE_INK)
        figure.draw_without_rendering()  # settles the layout, which the labels depend on
        _label_lambdas(left, lines, lambda row: 100 * (row.standard_accuracy or 0.0), [])
        _label_lambdas(right, lines, _p50_ms, [front])
        save_figure(figure, path)


@dataclass(frozen=True, slots=True)
class _Line:
    """One network along λ."""

    name: str
    style: dict[str, Any]
    rows: list[Row]


def _lines(rows: Sequence[Row]) -> list[_Line]:
    """A line per width and kind: colours tell widths apart, markers kinds; of one width or one

    kind, both tell the others apart.
    """
    widths = sorted({row.width for row in rows})
    kinds = list(dict.fromkeys(row.kind for row in rows))
    lines = []
    for i, width in enumerate(widths):
        for j, kind in enumerate(kinds):
            found = [row for row in rows if (row.width, row.kind) == (width, kind)]
            if not found:
                continue
            several = len(kinds) > 1
            name = f"width {width:g}" + (f", {' '.join(kind)}" if several else "")
            style = _style(i if len(widths) > 1 else j, j if several else i)
            lines.append(_Line(name, style, sorted(found, key=lambda row: row.lam)))
    return lines


def _p50_ms(row: Row) -> float:
    """Of a row that is drawn: failed ones are not."""
    assert row.latency_ms is not None
    return row.latency_ms.p50


def _draw_accuracy(axes: Any, lines: Sequence[_Line]) -> None:
    for line in lines:
        rows, style = line.rows, line.style
        x, y = _percent(rows, "standard_accuracy"), _percent(rows, WORST)
        axes.errorbar(x, y, yerr=_interval(y, rows), xerr=_interval(x, rows), **_bars(style))
        axes.plot(x, y, label=line.name, **style)
    axes.xaxis.get_major_locator().set_params(nbins=6, steps=[1, 2, 5, 10])
    axes.set(
        title="Robustness against accuracy, along λ",
        xlabel="Standard accuracy (%)",
        ylabel="Worst-case robust accuracy (%)",
    )


def _draw_latency(axes: Any, lines: Sequence[_Line]) -> Float64:
    """Returns the drawn Pareto front, as a polyline (m, 2)."""
    for line in lines:
        p50_ms = [_p50_ms(row) for row in line.rows]
        axes.plot(p50_ms, _percent(line.rows, WORST), **{**line.style, "linewidth": 0.6})
    rows = [row for line in lines for row in line.rows]
    points = np.array([(_p50_ms(row), 100 * (row.worst or 0.0)) for row in rows])
    front = np.unique(points[pareto_front(points, maximize=(False, True))], axis=0)
    low, high = points[:, 0].min(), points[:, 0].max()
    if high > 10 * low:
        ticker = require("matplotlib.ticker", purpose="drawing plots")
        axes.set_xscale("log")
        axes.set_xlim(low / 1.4, high * 1.6)
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    else:
        axes.set_xlim(0, 1.15 * high)
    # Steps: the best robust accuracy to be had within a latency.
    x = np.append(np.repeat(front[:, 0], 2)[1:], axes.get_xlim()[1])
    steps = np.column_stack([x, np.repeat(front[:, 1], 2)])
    axes.plot(
        *steps.T,
        color=INK,
        linewidth=0.9,
        linestyle=(0, (4, 2)),
        zorder=1.95,
        label="Pareto front",
    )
    axes.set(
        title="Robustness against latency",
        xlabel=f"Median latency (ms), batch {rows[0].batch}",
    )
    return steps


def _label_lambdas(
    axes: Any,
    networks: Sequence[_Line],
    x_of: Callable[[Row], float],
    other_lines: Sequence[Float64],
) -> None:
    """Write λ beside the markers; the ends first, so that they win where space is short."""
    points_per_pixel = 72.0 / axes.figure.dpi
    lines = [axes.transData.transform(line) * points_per_pixel for line in other_lines]
    todo: list[Label] = []
    for network in networks:
        rows = network.rows
        data = np.column_stack([[x_of(row) for row in rows], _percent(rows, WORST)])
        display = axes.transData.transform(data) * points_per_pixel
        lines.append(display)
        for index, row in enumerate(rows):
            end = index in (0, len(rows) - 1)
            name = f"λ={row.lam:g}" if end else f"{row.lam:g}"
            todo.append(Label(data[index], display[index], name, network.style["color"]))
    todo.sort(key=lambda label: not label.text.startswith("λ"))
    draw_labels(axes, _without_repeats(todo), lines, size_pt=LABEL_PT, marker=6.0)


def _without_repeats(todo: Sequence[Label]) -> list[Label]:
    """Of labels that say the same of points that lie on each other the last: its is on top."""

    def repeated(index: int) -> bool:
        _, place, name, _ = todo[index]
        return any(
            other == name and np.hypot(*(there - place)) < COINCIDE_PT
            for _, there, other, _ in todo[index + 1 :]
        )

    return [label for index, label in enumerate(todo) if not repeated(index)]


def _style(colour: int, marker: int) -> dict[str, Any]:
    return {
        "color": COLOURS[colour % len(COLOURS)],
        "marker": MARKERS[marker % len(MARKERS)],
        "markersize": MARKER_PT,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
        "linewidth": 1.2,
    }


def _bars(style: dict[str, Any]) -> dict[str, Any]:
    return {
        "fmt": "none",
        "ecolor": style["color"],
        "elinewidth": 0.8,
        "alpha": 0.22,
        "zorder": 1.5,
    }


def _percent(rows: Sequence[Row], name: str) -> list[float]:
    shares = (row.worst if name == WORST else row.standard_accuracy for row in rows)
    return [100 * (share or 0.0) for share in shares]


def _interval(percent: Sequence[float], rows: Sequence[Row]) -> Any:
    """(2, n) distances in percent from each share down and up to its interval's ends."""
    share = np.array(percent) / 100
    n = np.array([row.num_samples or 1 for row in rows])
    low, high = wilson_interval(share * n, n)
    return 100 * np.maximum([share - low, high - share], 0.0)
