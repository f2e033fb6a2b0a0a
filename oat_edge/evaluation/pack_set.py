"""The attack packs of one checkpoint, cut to the images that all of them hold.

    N images, C channels, H/W pixels

Figures that are compared (attacks, widths, λ, the transfer grid) must be of the same images; a
worst case per image has no other meaning.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.errors import InputError
from oat_edge.evaluation.pack import AttackPack, Int64, UInt8, chosen_indices
from oat_edge.operating_point import OperatingPoint

# What reports call the worst case, and the images that were crafted at other operating points.
WORST, TRANSFER = "worst", "transfer"
RESERVED = (WORST, TRANSFER, "square")


class PackSet:
    """Packs of any widths, checked against each other when they are put together."""

    images: UInt8
    """(N, C, H, W) clean images that every pack holds, in the order of `indices`."""
    labels: Int64
    """(N,)"""
    indices: Int64
    """(N,) places in the test split, growing."""
    warnings: tuple[str, ...]
    """What packs hold in vain, because not all of them hold it."""

    def __init__(
        self, packs: Sequence[AttackPack], *, checkpoint_sha256: str, eps: float | None = None
    ) -> None:
        """Raise `InputError` unless the packs are of this checkpoint and ε and fit together.

        packs: one or more. eps: of the network; None: that of the first pack.
        """
        if not packs:
            raise InputError("there are no attack packs: make them with `oat-edge export`")
        self.eps = packs[0].eps if eps is None else eps
        self.packs = tuple(packs)
        _check(self.packs, checkpoint_sha256, self.eps)
        self._places, self.indices = _common(self.packs)
        self.images = packs[0].images[self._places[0]]
        self.labels = packs[0].labels[self._places[0]]
        _check_same_images(self)
        self.warnings = _in_vain(self.packs, len(self.indices))

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def points(self) -> tuple[OperatingPoint, ...]:
        """Where some pack was crafted, sorted."""
        return tuple(sorted({point for _, point in self.sources}))

    @property
    def sources(self) -> tuple[tuple[str, OperatingPoint], ...]:
        """Every (attack, operating point) that images were crafted for."""
        return tuple(
            (pack.attack, OperatingPoint(pack.width, lam))
            for pack in self.packs
            for lam in pack.lambdas
        )

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """By attack how its packs were made; "crafted_on" by width, where they name a file."""
        settings: dict[str, dict[str, Any]] = {}
        for pack in self.packs:
            one = dict(pack.settings)
            if (crafted_on := one.pop("crafted_on", None)) is not None:
                before = settings.get(pack.attack, {}).get("crafted_on", {})
                one["crafted_on"] = {**before, f"{pack.width:g}": crafted_on}
            settings[pack.attack] = one
        return settings

    def cut(self, num: int, seed: int) -> PackSet:
        """The same packs with a seeded choice of `num` images, all if there are no more."""
        smaller = copy.copy(self)
        chosen = chosen_indices(len(self), num, seed)
        smaller.images, smaller.labels = self.images[chosen], self.labels[chosen]
        smaller.indices = self.indices[chosen]
        smaller._places = [places[chosen] for places in self._places]
        return smaller

    def lambdas(self, width: float) -> tuple[float, ...]:
        """Every λ that some pack of this width holds, growing."""
        return tuple(point.lam for point in self.points if point.width == width)

    def adversarial(self, attack: str, point: OperatingPoint) -> UInt8:
        """(N, C, H, W) what `attack` crafted at `point`; `KeyError` if no pack has it."""
        for pack, places in zip(self.packs, self._places, strict=True):
            if pack.attack == attack and pack.width == point.width and point.lam in pack.lambdas:
                crafted: UInt8 = pack.adversarial[pack.lambdas.index(point.lam)][places]
                return crafted
        raise KeyError((attack, point))


def _check(packs: Sequence[AttackPack], checkpoint_sha256: str, eps: float) -> None:
    seen: set[tuple[str, float, float]] = set()
    for pack in packs:
        name = f"attack pack {pack.attack} of width {pack.width:g}"
        if pack.checkpoint_sha256 != checkpoint_sha256:
            raise InputError(
                f"{name} is of checkpoint {pack.checkpoint_sha256[:12]}…, the network of "
                f"{checkpoint_sha256[:12]}…: export the attacks again"
            )
        if pack.eps != eps:
            raise InputError(
                f"{name} has ε {pack.eps * 255:g}/255, expected {eps * 255:g}/255: "
                "export the attacks again"
            )
        if pack.attack in RESERVED:
            raise InputError(f"{name} bears a name that reports use for something else: rename it")
        keys = {(pack.attack, pack.width, lam) for lam in pack.lambdas}
        if twice := seen & keys:
            attack, width, lam = min(twice)
            raise InputError(
                f"two packs hold attack {attack} of width {width:g} at λ={lam:g}: remove one"
            )
        seen |= keys


def _common(packs: Sequence[AttackPack]) -> tuple[list[npt.NDArray[np.intp]], Int64]:
    """Places in each pack of the images that all packs hold, and those images' indices."""
    shared = np.unique(packs[0].indices)
    for pack in packs[1:]:
        shared = shared[np.isin(shared, pack.indices)]
    if not len(shared):
        raise InputError("the attack packs have no image in common: export them together")
    places = []
    for pack in packs:
        order = np.argsort(pack.indices, kind="stable")
        places.append(order[np.searchsorted(pack.indices, shared, sorter=order)])
    return places, shared


def _in_vain(packs: Sequence[AttackPack], num_common: int) -> tuple[str, ...]:
    sizes = sorted({len(pack.indices) for pack in packs})
    if sizes[-1] <= num_common:
        return ()
    return (
        f"attack packs hold {' and '.join(map(str, sizes))} images: all figures are of the "
        f"{num_common} that every pack holds; export them with one --attack-samples",
    )


def _check_same_images(packs: PackSet) -> None:
    for pack, places in zip(packs.packs, packs._places, strict=True):
        same = np.array_equal(pack.images[places], packs.images)
        if not (same and np.array_equal(pack.labels[places], packs.labels)):
            raise InputError(
                f"attack packs {packs.packs[0].attack} and {pack.attack} name the same images but "
                "hold different ones: export them from one data set"
            )
