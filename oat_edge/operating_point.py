"""An operating point: which width runs at which λ."""

from __future__ import annotations

import math
from dataclasses import dataclass

from oat_edge.errors import InputError


@dataclass(frozen=True, order=True, slots=True)
class OperatingPoint:
    """One setting of the two knobs.  width in (0, 1], lam (λ) in [0, 1]."""

    width: float
    lam: float

    def __post_init__(self) -> None:
        if not 0.0 < self.width <= 1.0:
            raise InputError(f"width is {self.width}: expected a number in (0, 1]")
        if not 0.0 <= self.lam <= 1.0:
            raise InputError(f"lambda is {self.lam}: expected a number in [0, 1]")

    def __str__(self) -> str:
        return f"{self.width:g}@{self.lam:g}"

    @classmethod
    def parse(cls, text: str) -> OperatingPoint:
        """Read "0.5@0.3" (width@lambda)."""
        width, at, lam = text.partition("@")
        if not at:
            raise InputError(f"operating point is '{text}': expected WIDTH@LAMBDA such as 0.5@0.3")
        return cls(parse_number(width, "width"), parse_number(lam, "lambda"))


def grid(widths: tuple[float, ...], lambdas: tuple[float, ...]) -> list[OperatingPoint]:
    """Every pair of a width and a λ, widths outermost."""
    return [OperatingPoint(width, lam) for width in widths for lam in lambdas]


def parse_number(text: str, name: str) -> float:
    """Read "0.3" or a fraction "8/255"; NaN and infinity are refused."""
    numerator, slash, denominator = text.strip().partition("/")
    try:
        value = float(numerator) / (float(denominator) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{name} is '{text}': expected a number or a fraction") from None
    if not math.isfinite(value):
        raise InputError(f"{name} is '{text}': expected a finite number")
    return value


def parse_list(text: str, name: str) -> tuple[float, ...]:
    """Read "0.5,1.0" into sorted numbers without repeats."""
    return tuple(sorted({parse_number(part, name) for part in text.split(",")}))


def select(text: str, available: tuple[float, ...], name: str, *, every: str) -> tuple[float, ...]:
    """Read a list that must be part of `available`; the word `every` takes all of them."""
    if text.strip() == every:
        return available
    chosen = parse_list(text, name)
    for value in chosen:
        if value not in available:
            have = ", ".join(f"{item:g}" for item in available)
            raise InputError(f"{name} {value:g} is not there: have {have} (or '{every}')")
    return chosen
