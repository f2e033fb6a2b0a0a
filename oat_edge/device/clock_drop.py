"""Whether a clock changed between the parts of a measurement, or only scatters. Numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median

# Fewer readings than this say nothing of a part.
READINGS = 5
# A part whose clock is below this share of another's ran on another machine, so to speak.
DROP = 0.95
# What scatter adds to the difference between parts, in standard errors of a part's median:
# between the two that differ most, and between the means of the lowest and highest thirds.
# Simulated with 2 to 20 parts: under 1 % false alarms at 3 % scatter from 6 readings each on
# (tests/device/test_clock_drop.py).
OF_EXTREMES, OF_THIRDS = 6.0, 1.0


@dataclass(frozen=True, slots=True)
class Clock:
    """Readings of one clock in a part of a measurement."""

    low: float
    median: float
    high: float
    num: int


def gather(parts: Sequence[Clock]) -> list[Clock]:
    """Parts of enough readings: short ones are put together with those that follow them."""
    gathered: list[list[Clock]] = []
    waiting: list[Clock] = []
    for part in parts:
        waiting.append(part)
        if sum(one.num for one in waiting) >= READINGS:
            gathered.append(waiting)
            waiting = []
    if gathered:
        gathered[-1] += waiting
    return [_join(group) for group in gathered]


def find_drop(parts: Sequence[Clock]) -> tuple[float, float] | None:
    """The clock before and after a change, by more than DROP and scatter allow; None without one.

    parts: as `gather` gives them, in the order of time.
    """
    ordered = sorted(part.median for part in parts)
    error = median(_standard_error(part) for part in parts)
    third = max(1, round(len(parts) / 3))
    for num, errors in ((1, OF_EXTREMES), (third, OF_THIRDS)):
        low, high = fmean(ordered[:num]), fmean(ordered[-num:])
        if low + errors * error < DROP * high:
            medians = [part.median for part in parts]
            rose = medians.index(ordered[0]) < medians.index(ordered[-1])
            return (low, high) if rose else (high, low)
    return None


def _join(parts: Sequence[Clock]) -> Clock:
    return Clock(
        low=min(part.low for part in parts),
        median=median(part.median for part in parts),
        high=max(part.high for part in parts),
        num=sum(part.num for part in parts),
    )


def _standard_error(part: Clock) -> float:
    """Of the median, if readings scatter normally: from how far apart their extremes lie."""
    # The largest of n lies so many standard deviations above the mean (Blom 1958).
    extreme = NormalDist().inv_cdf((part.num - 0.375) / (part.num + 0.25))
    deviation = (part.high - part.low) / (2 * extreme)
    return math.sqrt(math.pi / 2 / part.num) * deviation
