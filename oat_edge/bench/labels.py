"""Placing small labels near points of a plot without covering points, lines or other labels.

All coordinates are display coordinates, in points (1/72 inch).  n points, boxes (x0, y0, x1, y1)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

# Directions in order of preference, as multiples of the distance.
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))


class Label(NamedTuple):
    """A text beside a point."""

    data: Float64
    """(2,) where the point is, in the axes' data."""
    place: Float64
    """(2,) the same in display coordinates."""
    text: str
    colour: str


def draw_labels(
    axes: Any, labels: Sequence[Label], lines: Sequence[Float64], *, size_pt: float, marker: float
) -> None:
    """Write what finds room beside its point, first come, first served.

    lines and marker: as `place_labels` takes them. size_pt: of the font. The layout is settled
    (`figure.draw_without_rendering`).
    """
    # A light patch, not an outline: outlined text becomes shapes in SVG.
    patch = {"boxstyle": "square,pad=0.06", "fc": "white", "ec": "none", "alpha": 0.75}
    sizes = [(0.56 * size_pt * len(label.text), 0.85 * size_pt) for label in labels]
    box = axes.bbox.transformed(axes.figure.dpi_scale_trans.inverted())
    bounds = (box.x0 * 72 + 1, box.y0 * 72 + 1, box.x1 * 72 + 6, box.y1 * 72 + 2)
    places = np.array([label.place for label in labels])
    centres = place_labels(places, np.array(sizes), lines, bounds=bounds, marker=marker)
    for label, centre in zip(labels, centres, strict=True):
        if centre is None:
            continue
        axes.annotate(
            label.text,
            label.data,
            xytext=(centre[0] - label.place[0], centre[1] - label.place[1]),
            textcoords="offset points",
            ha="center",
            va="center_baseline",
            fontsize=size_pt,
            color=label.colour,
            bbox=patch,
            zorder=1.9,  # over the bars, under the lines
        )


def place_labels(
    points: Float64,
    sizes: Float64,
    lines: Sequence[Float64],
    *,
    bounds: tuple[float, float, float, float],
    marker: float = 6.0,
    distances: Sequence[float] = (5.5, 8.5),
) -> list[tuple[float, float] | None]:
    """Centre of each label, or None where nothing near its point is free.

    points: (n, 2), first come, first served. sizes: (n, 2) width and height of the labels.
    lines: polylines (m, 2) that labels avoid if they can; points and labels they never touch.
    bounds: box that labels stay in. marker: diameter of a point.
    """
    half = marker / 2
    blocked = [(x - half, y - half, x + half, y + half) for x, y in points]
    on_lines = np.concatenate([_dense(line) for line in lines] or [np.empty((0, 2))])
    centres: list[tuple[float, float] | None] = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        best, best_cost = None, np.inf
        for far, distance in enumerate(distances):
            for order, (dx, dy) in enumerate(DIRECTIONS):
                # The label's edge, not its centre, keeps the distance.
                cx = x + dx * distance + np.sign(dx) * width / 2
                cy = y + dy * distance + np.sign(dy) * height / 2
                box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
                if not _inside(box, bounds) or any(_overlap(box, other) for other in blocked):
                    continue
                cost = 10 * _num_inside(on_lines, box) + 4 * far + order
                if cost < best_cost:
                    best, best_cost = (float(cx), float(cy)), cost
        centres.append(best)
        if best is not None:
            cx, cy = best
            blocked.append((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))
    return centres


def _dense(line: Float64) -> Float64:
    """Points along a polyline, about one per point of length."""
    parts = [line[:1]]
    for a, b in pairwise(line):
        steps = max(int(np.hypot(*(b - a))), 1)
        parts.append(a + (b - a) * (np.arange(1, steps + 1) / steps)[:, None])
    return np.concatenate(parts)


def _inside(box: Sequence[float], bounds: Sequence[float]) -> bool:
    return (
        box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]
    )


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _num_inside(points: Float64, box: Sequence[float]) -> int:
    x, y = points.T
    return int(((x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])).sum())
