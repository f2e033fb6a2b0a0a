"""What an operating point must keep and what is preferred among those that do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from oat_edge.calib.points import Point
from oat_edge.errors import InputError

Percentile = Literal["p50", "p95", "p99"]
Preference = Literal["robust", "standard", "latency"]
ROBUST, STANDARD, LATENCY = "robust_accuracy", "standard_accuracy", "latency_ms"
ACCURACIES = (STANDARD, ROBUST)


@dataclass(frozen=True, slots=True)
class Limit:
    """One constraint: a figure of a point that must not be above, or not below, a bound."""

    figure: str
    """Name of the figure in `Point`."""
    bound: float
    confident: bool = False
    """Of an accuracy: the lower end of its 95 % interval must keep the bound."""

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.figure in ACCURACIES

    def value(self, point: Point) -> float | None:
        """What is held against the bound; None is a figure that is not known."""
        if self.figure not in ACCURACIES:
            found: float | None = getattr(point, self.figure)
            return found
        if self.confident:
            span = point.interval(self.figure)
            return None if span is None else span[0]
        return point.counted(self.figure)

    def margin(self, point: Point) -> float | None:
        """How much is to spare, in the figure's unit; negative: how much is lacking."""
        value = self.value(point)
        if value is None:
            return None
        return value - self.bound if self.at_least else self.bound - value

    def met(self, point: Point) -> bool:
        """Whether the point keeps it. A figure that is not known never does."""
        margin = self.margin(point)
        return margin is not None and margin >= 0

    def shortfall(self, point: Point) -> float:
        """What is lacking as a share of the bound; 0 if it is met, infinite if not known.

        A share, so that milliseconds and accuracies can be compared.
        """
        margin = self.margin(point)
        if margin is None:
            return math.inf
        return 0.0 if margin >= 0 else -margin / self.bound

    def only_within_interval(self, point: Point) -> bool:
        """Whether the estimate meets an accuracy's bound and its 95 % interval does not."""
        span = point.interval(self.figure) if self.figure in ACCURACIES else None
        return span is not None and self.met(point) and span[0] < self.bound


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """Constraints, all of which must hold, and what is preferred. None: no such constraint."""

    max_latency_ms: float | None = None
    """Of one request, at `percentile`."""
    percentile: Percentile = "p50"
    min_robust: float | None = None
    """Worst-case robust accuracy, a share in [0, 1]."""
    min_standard: float | None = None
    max_energy_mj: float | None = None
    """Per image."""
    max_memory_mb: float | None = None
    """Of the process, and of the GPU where there is one."""
    confident: bool = False
    """Accuracies must hold with the lower end of their 95 % intervals."""
    prefer: Preference = "robust"

    def __post_init__(self) -> None:
        for name in ("min_robust", "min_standard"):
            share = getattr(self, name)
            if share is not None and not 0.0 <= share <= 1.0:
                raise InputError(f"{name} is {share:g}: expected a share in [0, 1], such as 0.4")
        for name in ("max_latency_ms", "max_energy_mj", "max_memory_mb"):
            bound = getattr(self, name)
            if bound is not None and not 0.0 < bound < math.inf:
                raise InputError(f"{name} is {bound:g}: expected a number above 0")
        for name, kind in (("percentile", Percentile), ("prefer", Preference)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise InputError(f"{name} is '{getattr(self, name)}': expected one of {choices}")

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The constraints that there are."""
        bounds = {
            LATENCY: self.max_latency_ms,
            ROBUST: self.min_robust,
            STANDARD: self.min_standard,
            "energy_mj": self.max_energy_mj,
            "memory_mb": self.max_memory_mb,
        }
        return tuple(
            Limit(figure, bound, self.confident and figure in ACCURACIES)
            for figure, bound in bounds.items()
            if bound is not None
        )

    def met(self, point: Point) -> bool:
        """Whether the point keeps all constraints."""
        return all(limit.met(point) for limit in self.limits)
