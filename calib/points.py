"""An operating point with its figures: what is chosen among."""

from __future__ import annotations

from dataclasses import dataclass

from oat_edge.evaluation.accuracy import interval
from oat_edge.operating_point import OperatingPoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One file at one λ and batch on one device. None: a figure that is not known."""

    artifact: str
    sha256: str
    format: str
    precision: str
    width: float
    lam: float
    batch: int
    latency_ms: float | None
    """Of one request, at the percentile that the goal speaks of."""
    standard_accuracy: float | None
    robust_accuracy: float | None
    """Worst case over the attacks that were tried: an upper bound."""
    energy_mj: float | None = None
    """Per image."""
    memory_mb: float | None = None
    """What the file adds to a process; on a GPU the larger of that and what it takes there."""
    num_samples: int | None = None
    """Images behind the accuracies."""
    attacks: tuple[str, ...] = ()
    """What the worst case is over."""
    threads: int | None = None
    """CPU threads of one request."""
    pinned: bool = False
    """λ is folded into the file: it cannot be turned."""
    unstable: bool = False
    """The latency was measured on a machine that was not quiet."""
    between_knots: bool = False
    """λ was not trained; its accuracies were measured by `lambda_search`."""
    robust_ceiling: float | None = None
    """Between knots, the most robust accuracy that is believed (see `counted`)."""

    @property
    def file(self) -> tuple[str, str, int | None]:
        """What runs: rows of one file and number of threads differ in λ only."""
        return self.artifact, self.sha256, self.threads

    @property
    def setting(self) -> OperatingPoint:
        """Its two knobs."""
        return OperatingPoint(self.width, self.lam)

    def counted(self, figure: str) -> float | None:
        """An accuracy as the choice counts it.

        No attack was crafted at a λ between two knots, so its measured robust accuracy flatters
        it: it counts for no more than the better of the two knots, which were attacked white-box.
        """
        share: float | None = getattr(self, figure)
        if share is None or figure != "robust_accuracy" or self.robust_ceiling is None:
            return share
        return min(share, self.robust_ceiling)

    def interval(self, figure: str) -> tuple[float, float] | None:
        """Wilson's 95 % interval of an accuracy, as it counts; None if it is not known."""
        share = self.counted(figure)
        return None if share is None or not self.num_samples else interval(share, self.num_samples)
