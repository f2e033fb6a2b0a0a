"""Parity: does the exported file compute what the trained network computes?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oat_edge.errors import GateError
from oat_edge.runtime.runner import Runner

if TYPE_CHECKING:
    from oat_edge.nn.network import OATSNetwork

TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How far an artifact is from the PyTorch network."""

    reference: str
    max_abs_diff: float
    """Largest difference of a logit."""
    argmax_agreement: float
    """Share of images with the same class."""
    tolerance: float
    num_images: int
    lambdas: tuple[float, ...]
    """Every λ that was compared; batches mix them."""
    batch_sizes: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def check_parity(
    network: OATSNetwork, width: float, runner: Runner, images: npt.NDArray[np.float32]
) -> Parity:
    """Compare a runner with the unfolded network of the same width.

    images: (N, C, H, W) float32 in [0, 1], N >= 5. λ: all knots, points between them and below
    the first, one λ per batch and mixed; batches of 1 and 5. A pinned runner is compared at its
    λ. Raises `GateError` if a logit differs by more than 1e-4.
    """
    import torch

    pinned = runner.io.pinned_lambda
    lambdas = (pinned,) if pinned is not None else compared_lambdas(network.knots)
    worst, agree, count = 0.0, 0, 0
    for image, lam in _batches(images, np.asarray(lambdas, dtype=np.float32)):
        with torch.no_grad():
            expected = network(torch.from_numpy(image), torch.from_numpy(lam), width).numpy()
        got = runner.infer(image, lam)
        # max() alone would let NaN pass; inf - inf is NaN as well.
        with np.errstate(invalid="ignore"):
            difference = np.abs(got - expected)
        finite = bool(np.isfinite(difference).all())
        worst = max(worst, float(difference.max()) if finite else float("inf"))
        agree += int((got.argmax(1) == expected.argmax(1)).sum())
        count += len(image)
    if worst > TOLERANCE:
        raise GateError(
            f"width {width:g} in {runner.backend} differs from PyTorch by {worst:.2g}, allowed "
            f"is {TOLERANCE:g}: nothing was added to the bundle; please report this"
        )
    return Parity(
        reference="torch, unfolded",
        max_abs_diff=worst,
        argmax_agreement=agree / count,
        tolerance=TOLERANCE,
        num_images=count,
        lambdas=lambdas,
        batch_sizes=(1, 5),
    )


def compared_lambdas(knots: tuple[float, ...]) -> tuple[float, ...]:
    """The knots, the middle of each gap, and (below the first non-zero knot) a small λ."""
    between = [(a + b) / 2 for a, b in pairwise(knots)]
    small = [1e-3] if len(knots) > 1 else []
    return tuple(sorted({*knots, *between, *small}))


def _batches(images: Any, lambdas: Any) -> Any:
    """Every λ at batch 1 and 5, then mixed batches of 5 that together see all of them."""
    for i, lam in enumerate(lambdas):
        yield images[i % len(images)][None], lam[None]
        yield np.roll(images, -i, axis=0)[:5], np.full(5, lam, dtype=np.float32)
    for start in range(0, len(lambdas), 5):
        yield np.roll(images, -start, axis=0)[:5], np.resize(np.roll(lambdas, -start), 5)
