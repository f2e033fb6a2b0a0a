"""The best operating point that meets a goal, what else there is, and what comes nearest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from oat_edge.calib.goal import LATENCY, ROBUST, STANDARD, Goal, Preference
from oat_edge.calib.operating_points import on_operating_front
from oat_edge.calib.points import Point

# Objectives by preference: the first decides, the next among its ties.
OBJECTIVES: dict[Preference, tuple[str, str, str]] = {
    "robust": (ROBUST, STANDARD, LATENCY),
    "standard": (STANDARD, ROBUST, LATENCY),
    "latency": (LATENCY, ROBUST, STANDARD),
}
MAX_RUNNERS_UP = 4


def objectives(point: Point, prefer: Preference) -> tuple[float, float, float]:
    """The three objectives in their order, each as a cost. One that is not known is worst."""

    def cost(figure: str) -> float:
        value = point.latency_ms if figure == LATENCY else point.counted(figure)
        if value is None:
            return math.inf
        return value if figure == LATENCY else -value

    first, second, third = OBJECTIVES[prefer]
    return cost(first), cost(second), cost(third)


def order(point: Point, prefer: Preference) -> tuple[Any, ...]:
    """Sort key, best first: the objectives, and for points that tie in all three what costs less.

    That is: a trained λ, then λ as an input, less energy, less memory, the narrower network, the
    smaller λ. The rest only makes the choice the same every time.
    """

    def known(value: float | None) -> float:
        return math.inf if value is None else value

    return (
        *objectives(point, prefer),
        point.between_knots,
        point.pinned,
        known(point.energy_mj),
        known(point.memory_mb),
        point.width,
        point.lam,
        point.batch,
        point.artifact,
        point.sha256,
        known(point.threads),
    )


def choose(points: Sequence[Point], goal: Goal) -> Point | None:
    """The best of the points that keep every constraint; None if none does.

    It is on the front of latency, robust and standard accuracy of those that do.
    """
    fitting = (point for point in points if goal.met(point))
    return min(fitting, key=lambda point: order(point, goal.prefer), default=None)


def runners_up(points: Sequence[Point], goal: Goal, chosen: Point) -> list[Point]:
    """Other points that keep every constraint, best first.

    The best of each other file, and those on the front, which all have something that the chosen
    one has not; no more than MAX_RUNNERS_UP.
    """
    fitting = sorted(
        (point for point in points if goal.met(point) and point != chosen),
        key=lambda point: order(point, goal.prefer),
    )
    best_of: dict[object, Point] = {}
    for point in fitting:
        if point.file != chosen.file:
            best_of.setdefault(point.file, point)
    on_front = [
        point for point, front in zip(fitting, front_of([chosen, *fitting])[1:], strict=True)
        if front
    ]  # fmt: skip
    taken = list(dict.fromkeys([*best_of.values(), *on_front]))[:MAX_RUNNERS_UP]
    return sorted(taken, key=lambda point: order(point, goal.prefer))


def front_of(points: Sequence[Point]) -> list[bool]:
    """Whether each point is on the front of latency, robust and standard accuracy."""
    mask = on_operating_front(
        [point.latency_ms for point in points],
        [point.counted(ROBUST) for point in points],
        [point.counted(STANDARD) for point in points],
    )
    return [bool(value) for value in mask]


def nearest_miss(points: Sequence[Point], goal: Goal) -> Point | None:
    """The point that lacks least, where none keeps every constraint; None if there are no points.

    First those whose constrained figures are known, then the smallest of the largest shortfalls
    (`Limit.shortfall`), then of their sums, then what is preferred.
    """
    return min(points, key=lambda point: _miss(point, goal), default=None)


def _miss(point: Point, goal: Goal) -> tuple[Any, ...]:
    short = [limit.shortfall(point) for limit in goal.limits]
    known = [value for value in short if math.isfinite(value)]
    unknown = len(short) - len(known)
    return unknown, max(known, default=0.0), sum(known), order(point, goal.prefer)
