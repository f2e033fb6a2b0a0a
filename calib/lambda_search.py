"""The best λ of one file, between the knots too: measured on the engine, not interpolated.

Between two knots above zero a network's scales and shifts are interpolated, its accuracies are
not: they are measured at every λ that is tried. Below the first knot above zero there is nothing
to find, every λ there is that knot (DESIGN, section 2).

A gap between two values of λ is worth a look if a λ in it could be better than the best known
one, supposing that nothing in it is better than the better of its two ends. The most promising
gap is halved, until no gap is worth a look or as many λ as wanted were tried.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from oat_edge.bench.config import SQUARE
from oat_edge.calib.choose import choose, objectives
from oat_edge.calib.goal import ROBUST, STANDARD, Goal
from oat_edge.calib.points import Point
from oat_edge.evaluation.accuracy import Accuracy
from oat_edge.evaluation.outcome import evaluate, right_under_square
from oat_edge.evaluation.pack_set import WORST, PackSet
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime.padding import steady
from oat_edge.runtime.runner import Float32, Runner

BATCH_SIZE = 64

Measure = Callable[[float], Accuracy]
"""Accuracies of a file at one λ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchLimits:
    """Where a search looks, and when it ends."""

    most: int = 12
    """λ between the knots that are tried, of one file."""
    resolution: float = 0.01
    """Values of λ that are closer are not told apart."""
    through_zero: bool = False
    """Whether λ between 0 and the first knot above it means anything: not with two branches."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What lies between two values of λ of one file that were measured."""

    low: Point
    high: Point
    ceiling: float | None
    """Of robust accuracy: that of the better of the two knots around."""

    @property
    def width(self) -> float:
        """In λ."""
        return self.high.lam - self.low.lam

    @property
    def ideal(self) -> Point:
        """A point as good as the better end in everything."""
        return dataclasses.replace(
            self.low,
            standard_accuracy=_better(self.low, self.high, STANDARD),
            robust_accuracy=_better(self.low, self.high, ROBUST),
            robust_ceiling=self.ceiling,
        )

    def halved(self, middle: Point) -> tuple[Gap, Gap]:
        """The two gaps that a λ inside makes of it."""
        return Gap(self.low, middle, self.ceiling), Gap(middle, self.high, self.ceiling)


def gaps_of(knots: Sequence[Point], *, through_zero: bool = False) -> list[Gap]:
    """The gaps between a file's points at its knots, those above zero unless `through_zero`."""
    ends = sorted(
        (point for point in knots if point.lam > 0 or through_zero), key=lambda point: point.lam
    )
    return [Gap(low, high, _better(low, high, ROBUST)) for low, high in pairwise(ends)]


def _better(one: Point, other: Point, figure: str) -> float | None:
    shares = (one.counted(figure), other.counted(figure))
    return max((share for share in shares if share is not None), default=None)


def promising(gap: Gap, goal: Goal, best: Point | None, resolution: float) -> bool:
    """Whether a λ in the gap could meet the goal and be better than `best`."""
    # Rounding must not make one more step of the last one.
    if gap.width < 2 * resolution - 1e-9 or not goal.met(gap.ideal):
        return False
    prefer = goal.prefer
    return best is None or objectives(gap.ideal, prefer) < objectives(best, prefer)


def search(
    knots: Sequence[Point],
    measure: Measure,
    goal: Goal,
    *,
    best: Point | None = None,
    limits: SearchLimits | None = None,
) -> list[Point]:
    """The λ between the knots of one file that were tried, with their accuracies, in that order.

    knots: its points as measured at the knots, all but the accuracies alike. best: a point, of any
    file, that has to be beaten.
    """
    limits = limits or SearchLimits()
    known = choose([*knots, *([best] if best else [])], goal)
    gaps, tried = gaps_of(knots, through_zero=limits.through_zero), list[Point]()
    while len(tried) < limits.most:
        worth = [gap for gap in gaps if promising(gap, goal, known, limits.resolution)]
        if not worth:
            break
        gap = min(worth, key=lambda gap: (objectives(gap.ideal, goal.prefer), -gap.width))
        lam = round((gap.low.lam + gap.high.lam) / 2, 6)
        point = dataclasses.replace(
            with_accuracy(gap.low, lam, measure(lam)),
            between_knots=True,
            robust_ceiling=gap.ceiling,
        )
        tried.append(point)
        gaps = [*(one for one in gaps if one is not gap), *gap.halved(point)]
        known = choose([*([known] if known else []), point], goal)
    return tried


def with_accuracy(point: Point, lam: float, accuracy: Accuracy) -> Point:
    """The same file at a λ with the accuracies that were measured there."""
    return dataclasses.replace(
        point,
        lam=lam,
        standard_accuracy=accuracy.standard_accuracy,
        robust_accuracy=accuracy.robust_accuracy[WORST],
        num_samples=accuracy.num_samples,
        attacks=tuple(name for name in accuracy.robust_accuracy if name != WORST),
    )


def engine_measure(
    runner: Runner,
    packs: PackSet,
    width: float,
    *,
    queries: int = 0,
    seed: int = 0,
) -> Measure:
    """Accuracies of an open file of this width at any λ.

    All packs are replayed, those of every λ of every width (`evaluation.outcome`). queries: of
    Square against the file itself at that very λ; 0 is without it.
    """
    engine = steady(runner)
    batch_size = min(BATCH_SIZE, runner.batch_limit or BATCH_SIZE)

    def measure(lam: float) -> Accuracy:
        def infer(image: Float32) -> Float32:
            return engine(image, lam)

        point = OperatingPoint(width, lam)
        outcome = evaluate(infer, packs, point, transfer=True, batch_size=batch_size)
        if queries:
            right = right_under_square(
                infer,
                packs.images,
                packs.labels,
                outcome.clean,
                eps=packs.eps,
                num_queries=queries,
                seed=seed,
                batch_size=batch_size,
            )
            attacked = {**outcome.attacked, SQUARE: right}
            outcome = dataclasses.replace(outcome, attacked=attacked)
        return outcome.accuracy()

    return measure
