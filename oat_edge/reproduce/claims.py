"""What the differences show, and what they only suggest.

A claim is *shown* if the 95 % intervals leave nothing else, *refuted* if they rule it out, and
otherwise *seen* or *not seen* by the figures alone, which another test set or training may turn
over. "At every point" is shown without a correction for looking at many points, and is refuted by
one of them, for which intervals are widened (Bonferroni); "at half of them" has no correction. One
seed knows nothing of what another training would give: it shows nothing and refutes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from oat_edge.operating_point import OperatingPoint
from oat_edge.reproduce.spread import Spread

Status = Literal["shown", "seen", "not seen", "refuted"]
# A margin of a point is met by a loss of a point, whatever floats make of it.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A sentence about differences, and how far it holds."""

    text: str
    status: Status
    evidence: str


def no_worse(
    what: str, than: str, differences: Mapping[OperatingPoint, Spread], margin: float
) -> Claim:
    """`what` is nowhere more than `margin` (a share) below; differences: what less than."""
    low = [one.interval[0] >= -margin - ROUNDING for one in differences.values()]
    mean = [one.mean >= -margin - ROUNDING for one in differences.values()]
    num = len(mean)
    high = [_highest(one, num) >= -margin - ROUNDING for one in differences.values()]
    return Claim(
        text=f"{what} no more than {100 * margin:g} point below {than}, at {_points(differences)}",
        status=_status(differences, all(low), all(mean), all(high)),
        evidence=f"at {sum(mean)} of {num} by the figures, at {sum(low)} by the intervals; "
        f"lowest {_lowest(differences)}",
    )


def better_everywhere(what: str, than: str, differences: Mapping[OperatingPoint, Spread]) -> Claim:
    """`what` is higher at every point; differences: what less than."""
    low, mean, _ = _above_zero(differences)
    high = [_highest(one, len(low)) > ROUNDING for one in differences.values()]
    return Claim(
        text=f"{what} better than {than}, at {_points(differences)}",
        status=_status(differences, all(low), all(mean), all(high)),
        evidence=f"at {sum(mean)} of {len(mean)} by the figures, at {sum(low)} by the intervals; "
        f"lowest {_lowest(differences)}",
    )


def better_at_half(what: str, than: str, differences: Mapping[OperatingPoint, Spread]) -> Claim:
    """`what` is higher at half of the points or more; differences: what less than."""
    counts = [sum(one) for one in _above_zero(differences)]
    num = len(differences)
    low, mean, high = (2 * count >= num for count in counts)
    return Claim(
        text=f"{what} better than {than} at half of {_points(differences)} or more",
        status=_status(differences, low, mean, high),
        evidence=f"at {counts[1]} of {num} by the figures, at {counts[0]} by the intervals "
        "(each by itself)",
    )


def in_points(one: Spread) -> str:
    """A difference in points: "+0.3 [-0.9, +1.5]"."""
    low, high = one.interval
    return f"{signed(one.mean)} [{signed(low)}, {signed(high)}]"


def signed(value: float) -> str:
    """A share as points with its sign; what rounds to nothing has none."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _status(
    differences: Mapping[OperatingPoint, Spread], low: bool, mean: bool, high: bool
) -> Status:
    several = all(len(one.by_seed) > 1 for one in differences.values())
    if low and several:
        return "shown"
    if not high and several:
        return "refuted"
    return "seen" if mean else "not seen"


def _highest(one: Spread, num: int) -> float:
    """Upper end of an interval that all `num` of them hold together with 95 %."""
    normal = NormalDist()
    wider = normal.inv_cdf(1 - 0.025 / num) / normal.inv_cdf(0.975)
    return one.mean + wider * (one.interval[1] - one.mean)


def _above_zero(
    differences: Mapping[OperatingPoint, Spread],
) -> tuple[list[bool], list[bool], list[bool]]:
    """By point, whether the interval, the mean, and any of the interval, lie above 0."""
    spreads = differences.values()
    return (
        [one.interval[0] > ROUNDING for one in spreads],
        [one.mean > ROUNDING for one in spreads],
        [one.interval[1] > ROUNDING for one in spreads],
    )


def _points(differences: Mapping[OperatingPoint, Spread]) -> str:
    """ "λ=0, 0.3, 1", of several widths their number."""
    points = list(differences)
    if len({point.width for point in points}) == 1:
        return "λ=" + ", ".join(f"{point.lam:g}" for point in points)
    return f"{len(points)} operating points"


def _lowest(differences: Mapping[OperatingPoint, Spread]) -> str:
    point, one = min(differences.items(), key=lambda item: item[1].mean)
    return f"{in_points(one)} at {point}"
