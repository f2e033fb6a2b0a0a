"""Shares and differences of shares with 95 % intervals, over images and over seeds.

    S seeds (trained networks), N test images, the same for all

An interval has two parts, put together as independent errors: of the images (Wilson's interval,
for a difference Newcombe's for paired images, its reach averaged over the seeds) and of the
training (Student's t over the seeds). One seed says nothing of the second part, which is then
left out; the result says how many seeds there were. Both parts are on the large side: averaging
over seeds makes the first smaller than assumed, and the second holds some of the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oat_edge.evaluation.accuracy import interval
from oat_edge.evaluation.outcome import Bool
from oat_edge.evaluation.precisions import drop_of
from oat_edge.require import require


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A share of images, or a difference of two; in [0, 1] or [-1, 1]."""

    mean: float
    """Over seeds."""
    interval: tuple[float, ...]
    """95 %; of the images alone if there is one seed."""
    std: float | None
    """Between seeds; None: one seed."""
    by_seed: tuple[float, ...]


def share(right: Sequence[Bool]) -> Spread:
    """Of images that are right. right: S arrays (N,)."""
    shares = [float(one.mean()) for one in right]
    spans = [interval(value, len(one)) for value, one in zip(shares, right, strict=True)]
    return _spread(shares, spans, lowest=0.0)


def difference(first: Sequence[Bool], second: Sequence[Bool]) -> Spread:
    """Share of `first` less that of `second`: S arrays (N,) each, of the same images and seeds."""
    drops = [drop_of(one, other) for one, other in zip(first, second, strict=True)]
    return _spread([one.lost for one in drops], [one.lost_interval for one in drops], lowest=-1.0)


def weighted(standard: Spread, robust: Spread, lam: float) -> Spread:
    """(1-λ)·standard + λ·robust, what λ asks for; of the same seeds.

    The ends of the interval are those of both parts: at least as wide as the truth, however the
    two hang together.
    """
    values = [
        (1 - lam) * a + lam * b for a, b in zip(standard.by_seed, robust.by_seed, strict=True)
    ]
    low, high = (
        (1 - lam) * a + lam * b for a, b in zip(standard.interval, robust.interval, strict=True)
    )
    return Spread(
        mean=(1 - lam) * standard.mean + lam * robust.mean,
        interval=(low, high),
        std=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        by_seed=tuple(values),
    )


def _spread(
    values: Sequence[float], spans: Sequence[tuple[float, ...]], *, lowest: float
) -> Spread:
    mean, std = float(np.mean(values)), None
    low, high = (np.array(spans) - np.array(values)[:, None]).mean(axis=0).tolist()
    if len(values) > 1:
        std = float(np.std(values, ddof=1))
        reach = _t_quantile(len(values) - 1) * std / math.sqrt(len(values))
        low, high = -math.hypot(low, reach), math.hypot(high, reach)
    return Spread(
        mean=mean,
        interval=(max(mean + low, lowest), min(mean + high, 1.0)),
        std=std,
        by_seed=tuple(values),
    )


def _t_quantile(degrees: int) -> float:
    """Of a two-sided 95 % interval."""
    stats = require("scipy.stats", purpose="intervals over several seeds")
    return float(stats.t.ppf(0.975, degrees))
