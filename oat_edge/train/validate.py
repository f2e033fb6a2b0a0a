"""Standard and robust accuracy over the grid of widths and λ, on the validation split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oat_edge.attacks.pgd import pgd, uniform_noise
from oat_edge.data.splits import permutation
from oat_edge.nn.fold import FoldedNetwork
from oat_edge.operating_point import OperatingPoint
from oat_edge.train.distributed import ALONE, Ranks

Logits = Callable[[Tensor], Tensor]
# Images in a pass. A CPU is as fast with 64 as with 1536 (`python -m benchmarks.validation`); a GPU
# wants more at once, and has the memory.
BATCH_SIZES = {"cpu": 500, "cuda": 4096}


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
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
) -> list[PointAccuracy]:
    """Accuracies at every width and knot; PGD on a seeded choice of `num_attacked` images.

    folded: width -> its present folded network. images: (N, C, H, W) uint8, in any order.
    batch_size: of images at whatever λ; None is as many as suit the device.
    ranks: each process takes a share of every width's images, and all get the whole result.
    """
    x, y = images.float() / 255, labels
    # A validation split may be sorted by class: a part of it must not be.
    few = torch.from_numpy(permutation(len(x), (seed,))[:num_attacked]).to(x.device)
    # Every operating point is attacked from the same starts.
    noise = uniform_noise(x[few], eps, torch.Generator().manual_seed(seed))
    size = BATCH_SIZES[x.device.type] if batch_size is None else batch_size

    def attack(logits: Logits, place: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return pgd(
            logits, x, y, eps=eps, steps=attack_steps, alpha=attack_alpha, noise=noise[place]
        )

    standard = [_right(one, x, y, size, ranks) for one in folded.values()]
    robust = [_right(one, x[few], y[few], size, ranks, attack) for one in folded.values()]
    counts = [torch.cat(standard), torch.cat(robust)]
    ranks.sum_(counts)
    points = [OperatingPoint(width, lam) for width, one in folded.items() for lam in one.knots]
    return [
        PointAccuracy(point, right / len(x), right_attacked / len(few))
        for point, right, right_attacked in zip(
            points, counts[0].tolist(), counts[1].tolist(), strict=True
        )
    ]


def _right(
    network: FoldedNetwork,
    x: Tensor,
    y: Tensor,
    batch_size: int,
    ranks: Ranks,
    attack: Callable[[Logits, Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Of the images of this process, how many are right at each knot, (K,) int64.

    A batch goes on from one knot to the next: few images at many knots are few batches.
    attack: logits, the images' places in x, images and labels -> images.
    """
    knots = torch.tensor(network.knots, device=x.device)
    counts = torch.zeros(len(knots), dtype=torch.int64, device=x.device)
    mine = torch.arange(ranks.rank, len(knots) * len(x), ranks.size, device=x.device)
    for part in torch.split(mine, batch_size):
        knot, place = part // len(x), part % len(x)
        logits = network.at(knots[knot])
        images, labels = x[place], y[place]
        if attack is not None:
            images = attack(logits, place, images, labels)
        with torch.no_grad():
            right = logits(images).argmax(dim=1) == labels
        counts += torch.bincount(knot[right], minlength=len(knots))
    return counts


def grid_score(grid: list[PointAccuracy]) -> float:
    """The criterion that chooses the checkpoint: mean of (1-λ)·SA + λ·RA over the whole grid.

    Accuracies are weighted as the training loss weighs their losses, so that no corner of the
    grid is given up for another.
    """
    return sum((1 - p.point.lam) * p.standard + p.point.lam * p.robust for p in grid) / len(grid)
