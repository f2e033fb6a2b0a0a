"""Settings that suit each data set: a recipe is a function that returns a config.

Imports no torch: the command line asks here for its defaults.
"""

from __future__ import annotations

from collections.abc import Callable

from oat_edge.config import TrainConfig


def digits() -> TrainConfig:
    """8x8 digits, minutes on two CPU cores.

    ε is 76/255, the usual 0.3 for handwritten digits (Madry et al. 2018, MNIST): at smaller radii
    digits this easy come out robust at every λ and there is no trade-off to show. A third of a
    batch is λ = 0 rather than a sixth, for 1295 images leave the clean branch too few otherwise.
    """
    return TrainConfig(
        data="digits",
        arch="resnet8",
        epochs=40,
        clean_share=1 / 3,
        eps=76 / 255,
        crop=1,
        val_every=5,
    )


def fashion_mnist() -> TrainConfig:
    """28x28 grey pictures of clothes."""
    return TrainConfig(
        data="fashion-mnist", arch="wrn-16-1", epochs=20, crop=2, flip=True, val_every=2
    )


def cifar10() -> TrainConfig:
    """The paper's setting for CIFAR-10."""
    return TrainConfig(data="cifar10", arch="resnet34", epochs=200, crop=4, flip=True, val_every=10)


def svhn() -> TrainConfig:
    """The paper's setting for SVHN: no augmentation, a lower rate."""
    return TrainConfig(data="svhn", arch="wrn-16-8", epochs=80, lr=0.01, val_every=5)


def stl10() -> TrainConfig:
    """The paper's setting for STL-10."""
    return TrainConfig(
        data="stl10", arch="wrn-40-2", epochs=200, batch_size=64, crop=12, flip=True, val_every=10
    )


def own_data(data: str) -> TrainConfig:
    """A start for an image folder or an .npz file."""
    return TrainConfig(data=data, arch="wrn-16-2", epochs=60, crop=2, flip=False, val_every=5)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "svhn": svhn,
    "stl10": stl10,
}


def recipe(data: str) -> TrainConfig:
    """The recipe of a named data set, or the start for own data."""
    return RECIPES[data]() if data in RECIPES else own_data(data)
