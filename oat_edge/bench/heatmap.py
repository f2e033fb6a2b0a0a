"""The transfer grid as a heat map: robust accuracy of targets under images crafted elsewhere.

Lengths are inches, places in the map are cells; rows count from the top.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.bench.style import INK, PALE_INK, STYLE, check_suffix, save_figure, wrapped
from oat_edge.evaluation.transfer import TransferGrid
from oat_edge.operating_point import OperatingPoint
from oat_edge.require import require

Float64 = npt.NDArray[np.float64]

MIN_WIDTH, MAX_WIDTH = 3.5, 7.2  # one column of a paper, and two
MIN_DOWN = 0.9  # room for the title of the rows, whatever their number
MAX_CELL = 0.42
GAP = 0.14  # between widths, in cells
LEFT, RIGHT, TOP, BOTTOM = 0.78, 0.78, 0.30, 0.72
TITLE_PT, SMALL_PT, LINE = 8.5, 7.5, 0.14
COLOUR_MAP = "viridis"  # perceptually uniform, also to the colour blind and in grey
# From the map to the line along a width, to the width, and to the axis' title.
LABELS_X, LABELS_Y = (0.20, 0.30, 0.49), (0.27, 0.37, 0.58)
LETTER = 0.06
UNKNOWN = "#e8e8e8"
# A dark line in a light one stands out from every colour.
OUTLINE = (("white", 2.6), (INK, 1.1))
CORNER = ((-0.5, 0.5), (0.5, 0.5), (0.5, -0.5), (-0.5, 0.5))


def transfer_paths(plot: Path, attacks: Sequence[str]) -> tuple[Path, ...]:
    """Where the heat maps go that belong to `plot`, one per attack."""
    names = [f"-{name}" for name in attacks] if len(attacks) > 1 else [""] * len(attacks)
    return tuple(plot.with_name(f"{plot.stem}-transfer{name}{plot.suffix}") for name in names)


def plot_transfer(grid: TransferGrid, path: Path, caption: str) -> None:
    """Draw a grid to a .png (300 dpi) or .svg file, targets as rows and sources as columns.

    caption: what stands below, parts joined by SEPARATOR. Raises `InputError` for another suffix,
    `DependencyError` without matplotlib.
    """
    check_suffix(path)
    matplotlib = require("matplotlib", purpose="drawing plots")
    figures = require("matplotlib.figure", purpose="drawing plots")
    columns, rows = _places(grid.sources), _places(grid.targets)
    frame = _Frame.around(columns[-1] + 1, rows[-1] + 1, caption)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = figures.Figure(figsize=(frame.width, frame.height))
        axes = figure.add_axes(frame.box(0.0, frame.across))
        axes.set(xlim=(0, columns[-1] + 1), ylim=(rows[-1] + 1, 0))
        axes.spines[:].set_visible(False)
        cells = _draw_cells(axes, grid, columns, rows, frame.cell)
        _label_points(axes, grid.sources, columns, frame.cell, along="x")
        _label_points(axes, grid.targets, rows, frame.cell, along="y")
        _draw_bar(figure, figure.add_axes(frame.box(frame.across + 0.12, 0.1)), cells, frame.down)
        _draw_legend(figure, (frame.left + frame.across / 2) / frame.width)
        text = {"ha": "center", "va": "bottom", "fontsize": SMALL_PT, "color": PALE_INK}
        figure.text(0.5, 0.07 / frame.height, "\n".join(frame.caption), **text)
        save_figure(figure, path)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """Sizes of a figure and of the map in it, and where the map begins."""

    width: float
    height: float
    left: float
    bottom: float
    across: float
    down: float
    cell: float
    caption: tuple[str, ...]
    """Lines."""

    @classmethod
    def around(cls, num_across: float, num_down: float, caption: str) -> _Frame:
        """The figure for a map of so many cells, gaps included."""
        cell = min(MAX_CELL, (MAX_WIDTH - LEFT - RIGHT) / num_across)
        across, down = cell * num_across, cell * num_down
        width = max(LEFT + across + RIGHT, MIN_WIDTH)
        lines = wrapped(caption, int(72 * (width - 0.2) / (0.5 * SMALL_PT)))
        bottom = BOTTOM + LINE * len(lines)
        return cls(
            width=width,
            height=bottom + down + max(0.0, (MIN_DOWN - down) / 2) + TOP,
            left=LEFT + (width - LEFT - across - RIGHT) / 2,
            bottom=bottom,
            across=across,
            down=down,
            cell=cell,
            caption=tuple(lines),
        )

    def box(self, x: float, width: float) -> tuple[float, float, float, float]:
        """Axes as high as the map, `x` from its left edge, as matplotlib takes them."""
        x, y = (self.left + x) / self.width, self.bottom / self.height
        return x, y, width / self.width, self.down / self.height


def _places(points: Sequence[OperatingPoint]) -> Float64:
    """(n,) where each cell begins: widths stand apart."""
    new_width = [a.width != b.width for a, b in pairwise(points)]
    return np.arange(len(points)) + GAP * np.cumsum([0, *new_width])


def _draw_cells(axes: Any, grid: TransferGrid, columns: Float64, rows: Float64, cell: float) -> Any:
    """Returns the coloured squares, for a colour bar."""
    patches = require("matplotlib.patches", purpose="drawing plots")
    collections = require("matplotlib.collections", purpose="drawing plots")
    percent = 100 * np.array(grid.robust_accuracy, dtype=np.float64)  # None becomes NaN
    low, high = _colour_range(percent)
    squares = collections.PatchCollection(
        [patches.Rectangle((x, y), 1, 1) for y in rows for x in columns],
        cmap=COLOUR_MAP,
        edgecolors="white",
        linewidths=0.5,
    )
    squares.set_array(np.ma.masked_invalid(percent).ravel())
    squares.set_clim(low, high)
    squares.cmap = squares.get_cmap().with_extremes(bad=UNKNOWN)
    axes.add_collection(squares)
    worst = dict(_worst_sources(grid, percent))
    inset = OUTLINE[0][1] / 2 / (72 * cell)  # the outline's edge is the cell's
    size = 1 - 2 * inset
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            value = percent[i, j]
            ink = INK if np.isnan(value) else _ink(squares.to_rgba(value))
            axes.text(
                x + 0.5,
                y + 0.52,
                "–" if np.isnan(value) else f"{value:.0f}",
                color=ink,
                ha="center",
                va="center_baseline",
                fontsize=min(72 * cell * 0.36, 8.5),
            )
            if grid.sources[j] == grid.targets[i]:
                for colour, line in OUTLINE:
                    frame = {"fill": False, "edgecolor": colour, "linewidth": line}
                    axes.add_patch(patches.Rectangle((x + inset, y + inset), size, size, **frame))
            if worst.get(i) == j:
                right, top = x + 1 - 2.5 * inset, y + 2.5 * inset
                corner = ((right - 0.19, top), (right, top), (right, top + 0.19))
                axes.add_patch(patches.Polygon(corner, facecolor=ink, edgecolor="none"))
    return squares


def _colour_range(percent: Float64) -> tuple[float, float]:
    """Whole tens around the figures; there may be none."""
    known = percent[~np.isnan(percent)]
    if not len(known):
        return 0.0, 100.0
    low, high = 10 * np.floor(known.min() / 10), 10 * np.ceil(known.max() / 10)
    return (low, high) if low < high else (max(low - 10.0, 0.0), min(high + 10.0, 100.0))


def _worst_sources(grid: TransferGrid, percent: Float64) -> Iterator[tuple[int, int]]:
    """(row, column) of the source that hurts each target most; of equal ones its own."""
    for i, target in enumerate(grid.targets):
        if np.isnan(percent[i]).all():
            continue
        least = np.flatnonzero(percent[i] == np.nanmin(percent[i]))
        own = [j for j in least if grid.sources[j] == target]
        yield i, int((own or least)[0])


def _ink(rgba: Sequence[float]) -> str:
    """White or dark, whichever contrasts more (WCAG 2 relative luminance)."""
    channels = np.asarray(rgba[:3])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    # INK's own luminance is 0.016.
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.066 else INK


def _label_points(
    axes: Any, points: Sequence[OperatingPoint], places: Float64, cell: float, *, along: str
) -> None:
    """λ at each cell, and each width once, at a line along its cells."""
    horizontal = along == "x"
    axis = axes.xaxis if horizontal else axes.yaxis
    axis.set_ticks(places + 0.5, [f"{point.lam:g}" for point in points], fontsize=SMALL_PT)
    axis.set_tick_params(length=0, pad=2.5)
    edge = axes.get_ylim()[0] if horizontal else 0.0
    outward = 1 if horizontal else -1

    def away(inches: float) -> float:
        return float(edge + outward * inches / cell)

    def write(text: str, place: float, inches: float, size: float) -> None:
        x, y = (place, away(inches)) if horizontal else (away(inches), place)
        axes.text(
            x, y, text, ha="center", va="center", fontsize=size, rotation=0 if horizontal else 90
        )

    line, name, title = LABELS_X if horizontal else LABELS_Y
    for width, group in groupby(range(len(points)), key=lambda index: points[index].width):
        members = list(group)
        start, stop = places[members[0]] + 0.06, places[members[-1]] + 0.94
        ends = (start, stop), (away(line), away(line))
        axes.plot(
            *(ends if horizontal else ends[::-1]), color=PALE_INK, linewidth=0.7, clip_on=False
        )
        long = f"width {width:g}"
        fits = cell * (stop - start) > LETTER * len(long)
        write(long if fits else f"w {width:g}", (start + stop) / 2, name, SMALL_PT)
    middle = (places[-1] + 1) / 2
    write("Crafted at λ" if horizontal else "Replayed at λ", middle, title, TITLE_PT)


def _draw_bar(figure: Any, bar: Any, cells: Any, height: float) -> None:
    ticker = require("matplotlib.ticker", purpose="drawing plots")
    locator = ticker.MaxNLocator(
        nbins=max(1, min(6, int(height / 0.3))), steps=[1, 2, 5, 10], integer=True
    )
    figure.colorbar(cells, cax=bar, ticks=locator)
    bar.set_ylabel("Robust accuracy (%)" if height > 1.2 else "RA (%)")
    bar.tick_params(length=2, width=0.6, labelsize=SMALL_PT)
    bar.spines["outline"].set_visible(False)


def _draw_legend(figure: Any, centre: float) -> None:
    patches = require("matplotlib.patches", purpose="drawing plots")
    lines = require("matplotlib.lines", purpose="drawing plots")
    own = patches.Patch(fill=False, edgecolor=INK, linewidth=1.1, label="own operating point")
    mark = {"linestyle": "", "marker": CORNER, "markersize": 4.5, "markeredgewidth": 0}
    worst = lines.Line2D([], [], color=INK, label="worst in its row", **mark)
    figure.legend(
        handles=[own, worst],
        loc="upper center",
        bbox_to_anchor=(centre, 1.0),
        ncols=2,
        borderaxespad=0.15,
        fontsize=SMALL_PT,
        handlelength=1.0,
        handletextpad=0.5,
        columnspacing=1.6,
    )
