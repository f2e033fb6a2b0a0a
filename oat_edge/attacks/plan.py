"""What is done at every operating point: which attacks, in which parts, at what cost."""

from __future__ import annotations

from dataclasses import dataclass

from oat_edge.attacks.stages import ATTACKS, COST
from oat_edge.evaluation.pack import Int64, UInt8
from oat_edge.operating_point import OperatingPoint

PGD, SQUARE, CHECKS = "pgd20", "square", "checks"
SQUARE_OF_AUTOATTACK = "square-aa"
COSTS = {**COST, SQUARE: 22.0, CHECKS: 1.5}
# Passes through the network at most, backward ones not counted; for progress.
PASSES = {
    PGD: 110, "apgd-ce": 105, "apgd-t": 930, "fab-t": 1830, "square-aa": 5005, CHECKS: 110,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Images:
    """What is attacked: N images of the test split."""

    images: UInt8
    """(N, C, H, W)"""
    labels: Int64
    indices: Int64
    """(N,) places in the test split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is done at every operating point."""

    attacks: tuple[str, ...]
    """White-box ones of `stages.ATTACKS`, and "square"."""
    eps: float
    seed: int
    num_classes: int
    num_queries: int
    batch_size: int

    @property
    def parts(self) -> tuple[str, ...]:
        """In order. PGD-20 is always there: the checks and the transfer grid build on it."""
        white_box = (stage for a in self.attacks if a != SQUARE for stage in ATTACKS[a])
        square = (SQUARE,) if SQUARE in self.attacks else ()
        return tuple(dict.fromkeys((PGD, *white_box, *square, CHECKS)))

    @property
    def strongest(self) -> str:
        """The white-box attack that includes the others."""
        order = [PGD, *(attack for attack in ATTACKS if attack in self.attacks)]
        return order[-1]

    @property
    def crafted(self) -> str:
        """Name of the images that are replayed at other operating points."""
        return PGD if self.strongest == PGD else f"{PGD} and {self.strongest}"


def cell_name(point: OperatingPoint, part: str, plan: Plan) -> str:
    """Name of a part's cell."""
    queries = f"-{plan.num_queries}" if part == SQUARE else ""
    return f"w{point.width!r}-lambda{point.lam!r}-{part}{queries}"


def cell_cost(point: OperatingPoint, part: str) -> float:
    """What a part costs, relative to others; for estimates of the time left."""
    return COSTS[part] * point.width
