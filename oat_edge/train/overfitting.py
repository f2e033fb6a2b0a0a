"""Robust overfitting (Rice, Wong & Kolter 2020): RA falls on new images, the loss on old ones too.

Adversarial training reaches its best robust accuracy long before its end, and standard accuracy
does not show it. What is kept is the checkpoint of the best validation score in any case; here it
is recognised and said.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LAST = 3  # validations in a row that must lie below; one may be bad luck


@dataclass(frozen=True, kw_only=True, slots=True)
class RobustOverfitting:
    """What was seen. Accuracies in [0, 1], at the largest λ, mean over the widths."""

    best_epoch: int
    """Epoch (from 0) of the highest robust accuracy on the validation split."""
    best_robust: float
    epoch: int
    """The last validation that belongs to this finding: the first at which it was sure."""
    robust: float
    """Mean of the last validations up to there."""
    noise: float
    """A fall of this much is luck: the 95 % interval of the best."""
    losses: tuple[float, float]
    """Training loss at both epochs."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        first, last = self.losses
        return (
            f"robust overfitting: validation RA fell from {self.best_robust:.1%} (epoch "
            f"{self.best_epoch + 1}) to {self.robust:.1%} (epoch {self.epoch + 1}) while the "
            f"training loss fell from {first:.3f} to {last:.3f}"
        )


def robust_overfitting(
    metrics: Sequence[dict[str, Any]], num_attacked: int
) -> RobustOverfitting | None:
    """Find it in the lines of metrics.jsonl: the first time that it was sure, or None.

    Sure means: at three validations in a row RA at the largest λ lies below its best by more than
    the 95 % interval of that best (over num_attacked images, counted once for all widths), and the
    training loss has gone down since the best. All validations attack the same images from the
    same starts, so the luck of which images were drawn is common to both sides, and the true noise
    of the difference smaller. Collapse (RA and the loss both get worse) is something else,
    and a network without λ > 0 has no robustness to lose.
    """
    validated = [m for m in metrics if "validation" in m]
    if not validated or _largest(validated[0]["validation"]) == 0:
        return None
    seen = [(m["epoch"], _robust(m["validation"]), m["loss"]) for m in validated]
    for end in range(LAST, len(seen)):
        last = seen[end - LAST + 1 : end + 1]
        best_epoch, best, best_loss = max(seen[: end - LAST + 1], key=lambda entry: entry[1])
        noise = 1.96 * math.sqrt(best * (1 - best) / num_attacked)
        epoch, _, loss = last[-1]
        if all(robust < best - noise for _, robust, _ in last) and loss < best_loss:
            return RobustOverfitting(
                best_epoch=best_epoch,
                best_robust=best,
                epoch=epoch,
                robust=sum(robust for _, robust, _ in last) / LAST,
                noise=noise,
                losses=(best_loss, loss),
            )
    return None


def _robust(validation: Sequence[dict[str, Any]]) -> float:
    """RA at the largest λ, mean over the widths."""
    largest = _largest(validation)
    found = [p["robust_accuracy"] for p in validation if p["lambda"] == largest]
    return float(sum(found) / len(found))


def _largest(validation: Sequence[dict[str, Any]]) -> float:
    return float(max(point["lambda"] for point in validation))
