"""What quantisation costs in accuracy, measured on labels: the gate of int8 files.

    N images, L lambdas

Logits move by design when activations have 256 levels, so a gate on logits says little. What
counts is which images are right, at every λ: clean, and under PGD. Both networks face the images
that were crafted on either of them: those of float32 alone would make an int8 file look robust that
they merely do not fit, those of int8 alone one whose gradients lead nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oat_edge.calib.batches import CalibrationSet, make_batches
from oat_edge.data.dataset import Split
from oat_edge.errors import InputError
from oat_edge.evaluation.checks import sign_test
from oat_edge.evaluation.precisions import Drop, drop_of
from oat_edge.runtime.runner import Runner

if TYPE_CHECKING:
    from oat_edge.attacks.craft import Attackable

Bool = npt.NDArray[np.bool_]
Progress = Callable[[float], None]
SEED = 1  # of the choice of images
# Chance that an exact copy of the network, but for noise that flips both ways alike, fails.
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """From float32 to int8 at one λ."""

    lam: float
    standard: Drop
    robust: Drop
    """Right clean, and under PGD of the float32 network and of the int8 one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """From float32 to int8 at every λ, each on the same `num_images` images."""

    changes: tuple[Change, ...]
    num_images: int

    @property
    def worst(self) -> tuple[float, str, float]:
        """The largest change in points, lost above zero; "SA" or "RA"; and its λ."""
        return max(self._all(), key=lambda one: (abs(one[0]), one))

    def beyond(self, points: float) -> tuple[float, str, float] | None:
        """The largest change, as `worst`, over `points` that chance does not explain, or None.

        Lost standard accuracy counts, gained does not; robust accuracy may not even be gained:
        rounding makes no network robust, what seems so are gradients that are hard to follow.
        With many λ some change by chance: an exact sign test, Bonferroni over all of them.
        """
        found = []
        level = _level(len(self.changes))
        for change in self.changes:
            for name, drop in (("SA", change.standard), ("RA", change.robust)):
                lost = 100 * drop.lost
                flips = sorted((drop.only_fp32, drop.only_other), reverse=True)
                much = lost > points if name == "SA" else abs(lost) > points
                if much and sign_test(*flips) < level:
                    found.append((lost, name, change.lam))
        return max(found, key=lambda one: abs(one[0]), default=None)

    @property
    def detectable(self) -> float:
        """Points below which no change can be told from chance on so few images."""
        return 100 * fewest_flips(len(self.changes)) / self.num_images

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "detectable": self.detectable}

    def _all(self) -> Iterator[tuple[float, str, float]]:
        for change in self.changes:
            yield 100 * change.standard.lost, "SA", change.lam
            yield 100 * change.robust.lost, "RA", change.lam


def fewest_flips(num_lambdas: int) -> int:
    """Images that must all flip the same way at one λ before `Changes.beyond` can fail."""
    flips = 1
    while sign_test(flips, 0) >= _level(num_lambdas):
        flips += 1
    return flips


def _level(num_lambdas: int) -> float:
    """Of one-sided tests: two accuracies at every λ, each of which may change either way."""
    return ALPHA / (4 * num_lambdas)


def check_enough(num_images: int, num_lambdas: int) -> None:
    """Raise `InputError` for so few images that nothing can fail."""
    fewest = fewest_flips(num_lambdas)
    if num_images < fewest:
        raise InputError(
            f"accuracy would be checked on {num_images} images: expected {fewest} or more at "
            f"{num_lambdas} λ, with fewer no loss can be told from chance; --check-samples 0 "
            "measures nothing and says so"
        )


class DropCheck:
    """The same images for every candidate: clean, and attacked on the float32 network."""

    def __init__(
        self,
        network: Attackable,
        split: Split,
        *,
        lambdas: Sequence[float],
        num_images: int,
        progress: Progress = lambda share: None,
        **attack: Any,
    ) -> None:
        """network: in float32. split: of images that are not in the calibration set. attack: of
        `make_batches`, as trained. Raises `InputError` for so few images that nothing can fail."""
        check_enough(min(num_images, len(split)), len(lambdas))
        self._split, self._lambdas = split, tuple(lambdas)
        self._settings = {"num_images": num_images, "seed": SEED, **attack}
        both = self._sets(network, ("clean", "adversarial"), progress)
        self.clean = tuple(one.take(~one.adversarial) for one in both)
        """One set per λ."""
        self.attacked = tuple(one.take(one.adversarial) for one in both)
        """The same images in the same order."""

    def changes(
        self,
        fp32: Runner,
        int8: Runner,
        int8_network: Attackable,
        progress: Progress = lambda share: None,
    ) -> Changes:
        """Compare both files; the attack on int8 is made on `int8_network`, the same as torch."""
        on_int8 = self._sets(int8_network, ("adversarial",), progress)
        changes = []
        for lam, clean, *attacked in zip(
            self._lambdas, self.clean, self.attacked, on_int8, strict=True
        ):
            before, after = (right(runner, clean) for runner in (fp32, int8))
            robust = [
                np.logical_and.reduce([own, *(right(runner, one) for one in attacked)])
                for own, runner in ((before, fp32), (after, int8))
            ]
            changes.append(
                Change(lam=lam, standard=drop_of(before, after), robust=drop_of(*robust))
            )
        return Changes(changes=tuple(changes), num_images=len(self.clean[0]))

    def _sets(
        self, network: Attackable, kinds: tuple[str, ...], progress: Progress
    ) -> tuple[CalibrationSet, ...]:
        sets = []
        for place, lam in enumerate(self._lambdas):
            sets.append(
                make_batches(network, self._split, lambdas=(lam,), kinds=kinds, **self._settings)
            )
            progress((place + 1) / len(self._lambdas))
        return tuple(sets)


def right(runner: Runner, samples: CalibrationSet) -> Bool:
    """(N,) which samples the runner classifies right; logits that are not finite never are."""
    pinned = runner.io.pinned_lambda is not None
    parts = []
    for batch in samples.batches():
        logits = runner.infer(batch.image, None if pinned else batch.lam)
        parts.append(np.where(np.isfinite(logits).all(1), logits.argmax(1), -1))
    return np.asarray(np.concatenate(parts) == samples.labels)
