"""Accuracy of an open runner on attack packs, for every λ, with 95 % intervals.

N images, L lambdas, K classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oat_edge.errors import InputError
from oat_edge.evaluation.pack import AttackPack, UInt8
from oat_edge.runtime import Runner

Bool = npt.NDArray[np.bool_]
WORST = "worst"
# Normal quantile of a two-sided 95 % interval.
Z_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Accuracy at one λ; shares in [0, 1]."""

    standard_accuracy: float
    """Share of clean images classified right."""
    robust_accuracy: dict[str, float]
    """By attack name, the share of its images classified right; "worst": the share of images
    that are right when clean *and* under every attack."""
    num_samples: int
    """Images behind each of these figures."""


def evaluate_pack(
    runner: Runner,
    packs: Sequence[AttackPack],
    *,
    width: float,
    checkpoint_sha256: str,
    batch_size: int = 64,
    lambdas: Sequence[float] | None = None,
) -> dict[float, Accuracy]:
    """Replay `packs` on `runner`: {λ: Accuracy} for every λ that some pack was made for.

    standard_accuracy is the share of clean images classified right at that λ;
    robust_accuracy[attack] the share of that attack's images classified right; "worst" the share
    of images classified right clean and under all attacks. All are upper bounds on robustness:
    they hold against these attacks. Packs of different size are compared on the images that
    all of a λ's packs hold.

    width, checkpoint_sha256: of the artifact that `runner` opened; a pack of another width or
    checkpoint raises `InputError`, and so do two packs of one attack at one λ. lambdas: evaluate
    only these. A runner with a pinned λ is evaluated at that λ alone.
    """
    check_packs(packs, width=width, checkpoint_sha256=checkpoint_sha256)
    wanted = {lam for pack in packs for lam in pack.lambdas}
    if lambdas is not None:
        wanted &= set(lambdas)
    if runner.io.pinned_lambda is not None:
        wanted &= {runner.io.pinned_lambda}
    return {lam: _at_lambda(runner, packs, lam, batch_size) for lam in sorted(wanted)}


def check_packs(packs: Sequence[AttackPack], *, width: float, checkpoint_sha256: str) -> None:
    """Raise `InputError` unless the packs are of this width and checkpoint and fit together."""
    seen: set[tuple[str, float]] = set()
    for pack in packs:
        if pack.width != width:
            raise InputError(
                f"attack pack {pack.attack} is of width {pack.width:g}, the network of "
                f"{width:g}: use the pack of that width"
            )
        if pack.checkpoint_sha256 != checkpoint_sha256:
            raise InputError(
                f"attack pack {pack.attack} is of checkpoint {pack.checkpoint_sha256[:12]}…, the "
                f"network of {checkpoint_sha256[:12]}…: export the attacks again"
            )
        if pack.attack == WORST:
            raise InputError(f"attack pack is called '{WORST}', which means all attacks together")
        if pack.eps != packs[0].eps:
            raise InputError(
                f"attack packs have eps {packs[0].eps:g} and {pack.eps:g}: "
                "a worst case over both would mean neither"
            )
        pairs = {(pack.attack, lam) for lam in pack.lambdas}
        if twice := seen & pairs:
            attack, lam = min(twice)
            raise InputError(f"two packs hold attack {attack} at λ={lam:g}: remove one")
        seen |= pairs


def to_float(images: UInt8) -> npt.NDArray[np.float32]:
    """Images as a network takes them: 8-bit levels to float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def wilson_interval(
    num_right: npt.ArrayLike, num_samples: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Wilson's 95 % interval of a share (Wilson 1927), elementwise: (low, high) in [0, 1].

    num_right out of num_samples, 0 <= num_right <= num_samples, num_samples >= 1.
    """
    n = np.asarray(num_samples, dtype=np.float64)
    right = np.asarray(num_right, dtype=np.float64)
    if not (np.all(n >= 1) and np.all(right >= 0) and np.all(right <= n)):
        raise ValueError("expected 0 <= num_right <= num_samples and num_samples >= 1")
    share, z2 = right / n, Z_95**2
    centre = share + z2 / (2 * n)
    reach = Z_95 * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = (centre - reach) / (1 + z2 / n), (centre + reach) / (1 + z2 / n)
    # At the ends the bound is exact; rounding must not move it past the share.
    return np.where(right == 0, 0.0, np.maximum(low, 0)), np.where(right == n, 1.0, high)


def _at_lambda(
    runner: Runner, packs: Sequence[AttackPack], lam: float, batch_size: int
) -> Accuracy:
    chosen = [pack for pack in packs if lam in pack.lambdas]
    places, images, labels = _shared_images(chosen)

    def right(images: UInt8) -> Bool:
        parts = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        predicted = [runner.infer(to_float(part), lam).argmax(axis=1) for part in parts]
        hits: Bool = np.concatenate(predicted) == labels
        return hits

    clean = right(images)
    by_attack = {
        pack.attack: right(pack.adversarial[pack.lambdas.index(lam)][place])
        for pack, place in zip(chosen, places, strict=True)
    }
    worst = np.logical_and.reduce([clean, *by_attack.values()])
    robust = {attack: float(hits.mean()) for attack, hits in by_attack.items()}
    return Accuracy(
        standard_accuracy=float(clean.mean()),
        robust_accuracy={**robust, WORST: float(worst.mean())},
        num_samples=len(labels),
    )


def _shared_images(
    packs: Sequence[AttackPack],
) -> tuple[list[npt.NDArray[np.intp]], UInt8, npt.NDArray[np.int64]]:
    """Places in each pack of the images that all hold, in one order; those images and labels."""
    shared = packs[0].indices
    for pack in packs[1:]:
        shared = shared[np.isin(shared, pack.indices)]
    if not len(shared):
        raise InputError("the attack packs have no image in common: export them together")
    places = []
    for pack in packs:
        order = np.argsort(pack.indices, kind="stable")
        places.append(order[np.searchsorted(pack.indices, shared, sorter=order)])
    images, labels = packs[0].images[places[0]], packs[0].labels[places[0]]
    for pack, place in zip(packs[1:], places[1:], strict=True):
        if not (
            np.array_equal(pack.images[place], images)
            and np.array_equal(pack.labels[place], labels)
        ):
            raise InputError(
                f"attack packs {packs[0].attack} and {pack.attack} name the same images but hold "
                "different ones: export them from one data set"
            )
    return places, images, labels
