"""Settings that suit each data set: a recipe is a function that returns a config.

`RECIPES` has the paper's plain method for every data set; `NAMED` are the variants of
`--recipe`, each a `dataclasses.replace` of another, of whatever fields it likes.
Imports no torch: the command line asks here for its defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oat_edge.config import TrainConfig
from oat_edge.errors import InputError

DEFAULT_DATA = "digits"
DEFAULT = "default"
# Where heads and average gained nothing that held against every attack: digits lost 1 to 4 points
# of RA for up to a point of SA (docs/results.md).
PLAIN_IS_AS_GOOD = frozenset({"digits"})


def digits() -> TrainConfig:
    """8x8 digits, minutes on two CPU cores.

    ε is 64/255, four of the scanner's 16 grey levels. At smaller radii digits this easy come out
    robust at every λ, and there is no trade-off to show (at 32/255 RA was 75 % at λ = 0 and 82 %
    at λ = 1); at 76/255 training at λ = 1 may collapse to one class. The authors' step size was
    made for 8/255 and does not cross a ball this wide, so Madry's 2.5 ε / steps takes its place.
    Two fifths of a batch are λ = 0: with a sixth of 1295 images the clean branch hardly learns to
    be different.
    """
    eps, attack_steps = 64 / 255, 7
    return TrainConfig(
        data="digits",
        arch="resnet8",
        clean_share=0.4,
        epochs=36,
        batch_size=64,
        lr=0.05,
        eps=eps,
        attack_steps=attack_steps,
        attack_alpha=2.5 * eps / attack_steps,
        crop=1,
        val_every=6,
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


def plain(data: str) -> TrainConfig:
    """The method as published, with settings that suit the data."""
    return RECIPES[data]() if data in RECIPES else own_data(data)


def default(data: str) -> TrainConfig:
    """The plain method with a clean pass of all images, a classifier per width, averaged weights.

    What that gains on Fashion-MNIST is in docs/results.md. The clean pass is AdvProp's (Xie et al.
    2020), the heads are SOLAR's (arXiv 2509.16833). The average starts short (`train.averaging`),
    so that it is over a tenth of a short training, and over 1000 steps of a long one.
    """
    if data in PLAIN_IS_AS_GOOD:
        return plain(data)
    return dataclasses.replace(plain(data), heads="per-width", ema=0.999, clean_images="all")


def fast(data: str) -> TrainConfig:
    """An attack of two steps that cross the ball, by the authors' rule for the step size.

    Together 1.25 ε up to 16/255, as the single step of Wong et al. 2020 (FGSM with a random start)
    has it; one step may come to fool itself from one epoch to the next, two resist that better
    (Andriushchenko & Flammarion 2020).
    """
    config = default(data)
    return dataclasses.replace(config, attack_steps=2, attack_alpha=None)


def best(data: str) -> TrainConfig:
    """Nothing has been measured to be better than the default yet."""
    return default(data)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A named way to train."""

    description: str
    """One line."""
    config: Callable[[str], TrainConfig]
    """Settings for the data of this name or path."""
    data: str | None = None
    """The only data set that it is for; None: any."""


def _paper(data: str, description: str) -> Recipe:
    return Recipe(description=description, config=plain, data=data)


NAMED: dict[str, Recipe] = {
    DEFAULT: Recipe(
        description="what train takes: plain, clean pass, heads, average", config=default
    ),
    "plain": Recipe(description="the paper's method, settings that suit the data", config=plain),
    "fast": Recipe(description="default with an attack of two steps", config=fast),
    "best": Recipe(description="for accuracy at any cost; nothing beats default yet", config=best),
    "paper-cifar10": _paper("cifar10", "the paper's network and settings"),
    "paper-svhn": _paper("svhn", "the paper's, without the authors' dropout of 0.3"),
    "paper-stl10": _paper("stl10", "the paper's"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a recipe came to on one data set: width 1, seed 0, test images."""

    minutes: float
    """Of training."""
    machine: str
    standard_accuracy: float
    """At λ = 0, in [0, 1]."""
    robust_accuracy: float
    """At λ = 1, in [0, 1]."""
    attacks: str
    """That the robust accuracy holds against."""
    source: str


# (recipe, data set) -> figures of docs/results.md. What was not measured is not here.
MEASURED: dict[tuple[str, str], Measured] = {
    ("plain", "digits"): Measured(
        minutes=2,
        machine="2 cores of an AMD EPYC",
        standard_accuracy=0.989,
        robust_accuracy=0.279,
        attacks="PGD-20, Square and transfer, on the exported files",
        source="docs/results.md, digits",
    ),
}


def measured(name: str, data: str) -> Measured | None:
    """What is known of a recipe: figures of its own, or of another that sets the same."""
    for (other, of_data), figures in MEASURED.items():
        if of_data == data and NAMED[other].config(data) == NAMED[name].config(data):
            return figures
    return None


def recipe(data: str | None = None, name: str = DEFAULT) -> TrainConfig:
    """Settings of the recipe `name` for this data; without data, those for its own or digits.

    Raises `InputError` for an unknown recipe, and for one that is for other data.
    """
    if name not in NAMED:
        close = difflib.get_close_matches(name.lower(), NAMED, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise InputError(f"recipe is '{name}': expected {', '.join(NAMED)}{hint}")
    only = NAMED[name].data
    if only is not None and data not in (None, only):
        general = ", ".join(other for other, one in NAMED.items() if one.data is None)
        raise InputError(
            f"recipe '{name}' is for {only}, got data '{data}': leave --data out, or take {general}"
        )
    return NAMED[name].config(data or only or DEFAULT_DATA)


def with_settings(config: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    """The config with a user's settings, whose other ones make way where they exclude them.

    A recipe's choice that the user did not make is no reason to refuse what the user did.
    """
    given = dict(given)
    if given.get("swa_start") is not None:
        given.setdefault("ema", 0.0)  # two averages
    single = given.get("conditioning", config.conditioning) == "single-bn"
    if single or len(given.get("lambdas", config.lambdas)) == 1:
        given.setdefault("clean_images", "share")  # no second branch for a clean pass
    return dataclasses.replace(config, **given)
