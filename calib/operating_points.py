"""Which operating points are worth having: Pareto fronts.

    n points, d objectives

A point is on the front if no other is at least as good in every objective and better in one.
Points that are equal in every objective stand or fall together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]


def pareto_front(points: npt.ArrayLike, *, maximize: Sequence[bool]) -> Bool:
    """Mask (n,) of the points on the front.

    points: (n, d), one column per objective. maximize: (d,), True where more is better.
    A point with NaN or infinity in it (a figure that is not known) is not on the front.
    O(n log n) for two objectives, O(n^2) otherwise.
    """
    cost = np.array(points, dtype=np.float64)
    if cost.ndim != 2 or cost.shape[1] != len(maximize):
        raise ValueError(f"points have shape {cost.shape}: expected (n, {len(maximize)})")
    cost[:, np.asarray(maximize, dtype=bool)] *= -1
    known = np.isfinite(cost).all(axis=1)
    front = np.zeros(len(cost), dtype=bool)
    search = _front_of_two if cost.shape[1] == 2 else _front_by_pairs
    front[known] = search(cost[known])
    return front


def on_operating_front(
    latency_p50_ms: Sequence[float | None],
    robust_worst: Sequence[float | None],
    standard: Sequence[float | None],
) -> Bool:
    """Mask of the operating points on the front of low latency, high worst-case robust accuracy

    and high standard accuracy. A point that lacks one of the figures (None) is not on it.
    """
    columns = (latency_p50_ms, robust_worst, standard)
    points = np.array(
        [[np.nan if v is None else v for v in row] for row in zip(*columns, strict=True)],
        dtype=np.float64,
    ).reshape(-1, 3)
    return pareto_front(points, maximize=(False, True, True))


def _front_of_two(cost: Float64) -> Bool:
    """Sort by the first cost; the front is where the second one falls below all before it."""
    front = np.zeros(len(cost), dtype=bool)
    if not len(cost):
        return front
    order = np.lexsort((cost[:, 1], cost[:, 0]))
    first, second = cost[order].T
    # Points of equal first cost form a group; only its smallest second cost can be on the front.
    _, starts, group = np.unique(first, return_index=True, return_inverse=True)
    group_min = second[starts]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(group_min)[:-1]])
    front[order] = (second == group_min[group]) & (second < best_before[group])
    return front


def _front_by_pairs(cost: Float64) -> Bool:
    """Compare every point with all others."""
    front = np.ones(len(cost), dtype=bool)
    for index, point in enumerate(cost):
        no_worse = (cost <= point).all(axis=1)
        front[index] = not (no_worse & (cost < point).any(axis=1)).any()
    return front
