"""Standard and robust accuracy over the grid of widths and λ, on the validation split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oat_edge.attacks.pgd import pgd
from oat_edge.data.splits import permutation
from oat_edge.nn.fold import FoldedNetwork
from oat_edge.operating_point import OperatingPoint
from oat_edge.train.distributed import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class PointAccuracy:
    """Accuracies in [0, 1] at one operating point."""

    point: OperatingPoint
    standard: float
    robust: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "width": self.point.width,
            "lambda": self.point.lam,
            "standard_accuracy": self.standard,
            "robust_accuracy": self.robust,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> PointAccuracy:
        """Read what `to_json` wrote."""
        point = OperatingPoint(value["width"], value["lambda"])
        return cls(point, value["standard_accuracy"], value["robust_accuracy"])


def validate(
    folded: dict[float, FoldedNetwork],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    attack_steps: int,
    attack_alpha: float,
    num_attacked: int,
    seed: int,
    batch_size: int = 500,
    ranks: Ranks = ALONE,
) -> list[PointAccuracy]:
    """Accuracies at every width and knot; PGD on a seeded choice of `num_attacked` images.

    folded: width -> its present folded network. images: (N, C, H, W) uint8, in any order.
    ranks: each process takes a share of every batch, and all get the whole result.
    """
    points, correct = [], []
    x, y = images.float() / 255, labels
    # A validation split may be sorted by class: a part of it must not be.
    few = torch.from_numpy(permutation(len(x), (seed,))[:num_attacked]).to(x.device)
    x_few, y_few = x[few], y[few]
    for width, network in folded.items():
        for lam in network.knots:
            generator = torch.Generator().manual_seed(seed)
            standard = robust = 0
            for start in range(0, len(x), batch_size):
                part = slice(start + ranks.rank, start + batch_size, ranks.size)
                logits = network.at(_full(x[part], lam))
                with torch.no_grad():
                    standard += _correct(logits(x[part]), y[part])
            for start in range(0, len(x_few), batch_size):
                part = slice(start + ranks.rank, start + batch_size, ranks.size)
                among = torch.zeros(len(x_few[start : start + batch_size]), dtype=torch.bool)
                among[ranks.rank :: ranks.size] = True
                logits = network.at(_full(x_few[part], lam))
                x_adv = pgd(
                    logits,
                    x_few[part],
                    y_few[part],
                    eps=eps,
                    steps=attack_steps,
                    alpha=attack_alpha,
                    generator=generator,
                    among=among,
                )
                with torch.no_grad():
                    robust += _correct(logits(x_adv), y_few[part])
            points.append(OperatingPoint(width, lam))
            correct.append((standard, robust))
    counts = torch.tensor(correct, device=x.device)
    ranks.sum_([counts])
    return [
        PointAccuracy(point, standard / len(x), robust / len(x_few))
        for point, (standard, robust) in zip(points, counts.tolist(), strict=True)
    ]


def grid_score(grid: list[PointAccuracy]) -> float:
    """The criterion that chooses the checkpoint: mean of (1-λ)·SA + λ·RA over the whole grid.

    Accuracies are weighted as the training loss weighs their losses, so that no corner of the
    grid is given up for another.
    """
    return sum((1 - p.point.lam) * p.standard + p.point.lam * p.robust for p in grid) / len(grid)


def _full(x: Tensor, lam: float) -> Tensor:
    return torch.full((len(x),), lam, device=x.device)


def _correct(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(dim=1) == labels).sum())
