"""Signs that gradients are masked and a robust accuracy must not be trusted.

After Athalye et al. (2018, section 3.1) and Carlini et al. (2019, section 5). A check compares
attacks of which one must be the stronger; that it is not is evidence against the attack, and so
against the figure. What chance can do is not flagged: a sign test at 0.1 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from oat_edge.evaluation.accuracy import to_float
from oat_edge.evaluation.outcome import Bool, Infer
from oat_edge.evaluation.pack import Int64, UInt8

P_VALUE = 1e-3
# Largest difference of normalised logits between passes; the authors of AutoAttack use the same.
RANDOM_TOLERANCE = 1e-4
PASSES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check at one operating point."""

    name: str
    flagged: bool | None
    """True: a sign of masking; None: could not be made."""
    evidence: str
    """Figures, or why it could not be made."""


def check_weaker(name: str, weak: str, strong: str, weak_right: Bool, strong_right: Bool) -> Check:
    """Flag `weak` fooling more images than `strong`, an attack that must be the stronger.

    weak_right, strong_right: (N,) right under each attack, of the same images.
    """
    only_weak = int((strong_right & ~weak_right).sum())
    only_strong = int((weak_right & ~strong_right).sum())
    p_value = sign_test(only_weak, only_strong)
    return Check(
        name=name,
        flagged=p_value < P_VALUE,
        evidence=(
            f"{_percent(weak_right)} right under {weak}, {_percent(strong_right)} under {strong}; "
            f"fooled by the first alone {only_weak}, by the second alone {only_strong} "
            f"of {len(weak_right)}"
        ),
    )


def check_randomised(infer: Infer, images: UInt8, labels: Int64) -> Check:
    """Flag a network that answers the same images differently."""
    passes = []
    for _ in range(PASSES):
        logits = infer(to_float(images)).astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinite logits
            passes.append(logits / (np.linalg.norm(logits, axis=1, keepdims=True) + 1e-10))
    difference = float(np.abs(np.array(passes) - passes[0]).max())
    right = [int((one.argmax(axis=1) == labels).sum()) for one in passes]
    differs = not difference <= RANDOM_TOLERANCE or len(set(right)) > 1  # NaN differs too
    return Check(
        name="randomised output",
        flagged=differs,
        evidence=f"{PASSES} passes over {len(images)} images: normalised logits differ by up to "
        f"{difference:.1g}, right are {', '.join(map(str, right))}",
    )


def sign_test(num_for: int, num_against: int) -> float:
    """One-sided exact sign test: chance of `num_for` or more if both were equally likely."""
    n = num_for + num_against
    term = tail = math.comb(n, num_for)
    for k in range(num_for, n):
        term = term * (n - k) // (k + 1)  # comb(n, k + 1): from scratch each takes milliseconds
        tail += term
    return float(tail / 2**n)


def _percent(right: Bool) -> str:
    return f"{100 * float(right.mean()):.1f} %"
