"""Which images a network classifies right, clean and attacked: what every accuracy is made of.

N images, K classes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from oat_edge.attacks.square import square_attack
from oat_edge.evaluation.accuracy import Accuracy, to_float
from oat_edge.evaluation.pack import Int64, UInt8
from oat_edge.evaluation.pack_set import TRANSFER, WORST, PackSet
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime.runner import Float32

Bool = npt.NDArray[np.bool_]
Infer = Callable[[Float32], Float32]
Source = tuple[str, OperatingPoint]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """Which of N images are right at one operating point. All arrays are (N,) bool."""

    clean: Bool
    attacked: Mapping[str, Bool] = field(default_factory=dict)
    """By attack on this very operating point: right under it."""
    crafted: Mapping[str, Bool] = field(default_factory=dict)
    """By name of crafted images: right on those of this very point."""
    transferred: Mapping[Source, Bool] = field(default_factory=dict)
    """By (attack, operating point) that images were crafted for elsewhere: right on them."""

    @property
    def robust(self) -> dict[str, Bool]:
        """By attack, and "transfer" and "worst": the images that stay right, clean included.

        The clean image lies in the ε-ball too: one that is wrong clean is not robust.
        """
        robust = {attack: self.clean & right for attack, right in self.attacked.items()}
        if self.transferred:
            robust[TRANSFER] = np.logical_and.reduce([self.clean, *self.transferred.values()])
        return {**robust, WORST: np.logical_and.reduce([self.clean, *robust.values()])}

    @property
    def worst_of_own(self) -> float:
        """Robust accuracy under all attacks on this very point, without transfer."""
        return float(np.logical_and.reduce([self.clean, *self.attacked.values()]).mean())

    def accuracy(self) -> Accuracy:
        """Shares over the N images. Robust ones hold against these attacks: upper bounds."""
        return Accuracy(
            standard_accuracy=float(self.clean.mean()),
            robust_accuracy={name: float(right.mean()) for name, right in self.robust.items()},
            num_samples=len(self.clean),
        )


def evaluate(
    infer: Infer, packs: PackSet, point: OperatingPoint, *, transfer: bool, batch_size: int = 64
) -> Outcome:
    """Replay packs on `infer`, a network of width `point.width` at λ = `point.lam`.

    infer: (n, C, H, W) float32 in [0, 1] to (n, K) logits. transfer: also what was crafted at
    every other operating point.
    """

    def right(images: UInt8) -> Bool:
        return classified_right(infer, images, packs.labels, batch_size)

    attacked, transferred = {}, {}
    for attack, source in packs.sources:
        if source == point:
            attacked[attack] = right(packs.adversarial(attack, source))
        elif transfer:
            transferred[attack, source] = right(packs.adversarial(attack, source))
    return Outcome(clean=right(packs.images), attacked=attacked, transferred=transferred)


def classified_right(infer: Infer, images: UInt8, labels: Int64, batch_size: int) -> Bool:
    """(N,) whether each image is classified as its label.

    infer: (n, C, H, W) float32 in [0, 1] to (n, K) logits, for at most `batch_size` images.
    An image whose logits are not all finite counts as wrong.
    """
    right = np.empty(len(images), dtype=bool)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        logits = infer(to_float(images[part]))
        finite = np.isfinite(logits).all(axis=1)
        right[part] = finite & (logits.argmax(axis=1) == labels[part])
    return right


def right_under_square(
    infer: Infer,
    images: UInt8,
    labels: Int64,
    clean: Bool,
    *,
    eps: float,
    num_queries: int,
    seed: int,
    batch_size: int,
    progress: Callable[[int], None] = lambda queries: None,
) -> Bool:
    """(N,) right under Square; those not right `clean` are not attacked and wrong already."""
    right = clean.copy()
    right[clean] = square_attack(
        infer,
        images[clean],
        labels[clean],
        eps=eps,
        num_queries=num_queries,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    ).right
    return right
