"""All there was to choose among, and how far λ was searched."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from oat_edge.calib.points import Point
from oat_edge.calib.reports import Measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """The points of one device's reports, with what a search has added to them."""

    measured: Measured
    points: tuple[Point, ...]
    bundle: Path | None = None
    """Where the bundle was found."""
    searched: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """By file, the λ between the knots that were measured here."""
    num_measured: int = 0
    """Values of λ that were measured here, the knots included."""
    not_searched: str | None = None
    """Why λ between the knots was not searched."""
    warnings: tuple[str, ...] = ()
