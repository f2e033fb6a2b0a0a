"""A network that costs nothing, for what attacks and evaluations do around it.

N batch, C channels, H/W pixels, K classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from oat_edge.data import Dataset, Split
from oat_edge.network_spec import NetworkSpec
from oat_edge.train.checkpoint import Checkpoint

SHAPE = (1, 4, 4)
EPS = 32 / 255
LAMBDAS = (0.0, 1.0)
WIDTHS = (0.5, 1.0)


def prototypes(num_classes: int) -> Tensor:
    """(K, C, H, W) of each class its image."""
    return torch.rand(num_classes, *SHAPE, generator=torch.Generator().manual_seed(7))


def toy_images(
    num: int, num_classes: int = 5, noise: float = 0.35
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Prototypes with noise: some lie close to the border of their class, some over it."""
    rng = np.random.default_rng(11)
    labels = rng.integers(num_classes, size=num)
    clean = prototypes(num_classes).numpy()[labels]
    images = np.clip(clean + rng.normal(size=clean.shape) * noise, 0, 1)
    return np.rint(255 * images).astype(np.uint8), labels


class Toy:
    """Does as a `FoldedNetwork` does: the logits are (smooth) distances to the prototypes.

    width is the share of the pixels that are looked at, λ blurs the prototypes.
    """

    def __init__(self, width: float = 1.0, num_classes: int = 5, passes: list[int] | None = None):
        self.table = torch.zeros(1)  # says which device
        self.seen = torch.arange(16).reshape(SHAPE) < round(16 * width)
        self.prototypes = prototypes(num_classes)
        self.passes = [] if passes is None else passes

    def buffers(self) -> Iterator[Tensor]:
        return iter([self.table])

    def at(self, lam: Tensor) -> Callable[[Tensor], Tensor]:
        blur = 0.3 * float(lam[0])
        centres = (1 - blur) * self.prototypes + blur * self.prototypes.mean(dim=3, keepdim=True)

        def logits(x: Tensor) -> Tensor:
            self.passes.append(len(x))
            distance = ((x[:, None] - centres).square() + 0.01).sqrt()
            return -2 * (distance * self.seen).sum(dim=(2, 3, 4))

        return logits


def toy_logits(num_classes: int = 5, lam: float = 0.0) -> Callable[[Tensor], Tensor]:
    """The toy at one λ."""
    return Toy(num_classes=num_classes).at(torch.full((1,), lam))


def toy_checkpoint(sha256: str = "a" * 64, num_classes: int = 5) -> Checkpoint:
    """A checkpoint that `fold`, patched to `Toy`, makes a network of."""
    spec = NetworkSpec(
        arch="toy",
        widths=WIDTHS,
        lambdas=LAMBDAS,
        class_names=tuple("abcdefgh"[:num_classes]),
        image_shape=SHAPE,
        eps=EPS,
    )
    return Checkpoint(nn.Identity(), spec, {}, "toy", sha256)  # type: ignore[arg-type]


def toy_dataset(num: int = 40, num_classes: int = 5) -> Dataset:
    """Test images of the toy."""
    images, labels = toy_images(num, num_classes)
    split = Split(images=images, labels=labels)
    return Dataset(
        name="toy", train=split, val=split, test=split,
        class_names=tuple("abcdefgh"[:num_classes]), record={},
    )  # fmt: skip
