"""Signs that gradients are masked and a robust accuracy must not be trusted.

After Athalye et al. (2018, section 3.1) and Carlini et al. (2019, section 5). A check compares
attacks of which one must be the stronger; that it is not is evidence against the attack, and so
against the figure. What chance can do is not flagged (a sign test at 0.1 %), nor is a difference
of less than 1 % of the images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from oat_edge.evaluation.accuracy import to_float
from oat_edge.evaluation.config import GRAPH_ATTACK
from oat_edge.evaluation.outcome import Bool, Infer
from oat_edge.evaluation.pack import Int64, UInt8

PGD, SQUARE = "pgd20", "square"
QUANTISED_GRADIENTS = "quantised gradients"
WITHOUT_SQUARE = (
    "int8 stands the attacks on both networks better than fp32 does: only Square can tell whether "
    "it is more robust, add square to --attack"
)
P_VALUE, SHARE = 1e-3, 0.01
# With fewer images even a real difference may look like chance.
MIN_IMAGES = 50
# Share of the images that AutoAttack's Square may add to its white-box parts.
SQUARE_GAIN = 0.02
# Largest difference of normalised logits between passes; the authors of AutoAttack use the same.
RANDOM_TOLERANCE = 1e-4
PASSES = 3
TOO_WEAK = "PGD-20 overstates the robust accuracy here, add autoattack to --attack"


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
    n = len(weak_right)
    evidence = (
        f"{_percent(weak_right)} right under {weak}, {_percent(strong_right)} under {strong}; "
        f"fooled by the first alone {only_weak}, by the second alone {only_strong} of {n}"
    )
    if sign_test(only_weak, only_strong) < P_VALUE and only_weak - only_strong >= SHARE * n:
        return Check(name=name, flagged=True, evidence=evidence)
    if n < MIN_IMAGES:
        reason = f"needs {MIN_IMAGES} images or more, there were {n}"
        return Check(name=name, flagged=None, evidence=reason)
    return Check(name=name, flagged=False, evidence=evidence)


def check_square(
    white_box: str, white_box_right: Bool, square_right: Bool, *, complete: bool
) -> Check:
    """Flag Square, which sees no gradient, doing better than white-box attacks.

    complete: these include APGD or AutoAttack. Of PGD-20 alone, Square doing better says that it
    is too weak, and only the stronger attacks can tell why.
    """
    check = check_weaker("square", "Square", white_box, square_right, white_box_right)
    if complete or not check.flagged:
        return check
    return Check(name="square", flagged=None, evidence=f"{check.evidence}: {TOO_WEAK}")


def check_quantised_gradients(fp32: Mapping[str, Bool], int8: Mapping[str, Bool]) -> Check:
    """Flag an int8 network that resists the attack made on it, and no other attack as much.

    fp32, int8: by attack, (N,) right under it, of the same images; each was attacked white-box by
    PGD-20 of its own gradients. Where int8 stands that markedly better, it is either more robust,
    and then also under Square and under what was made on fp32, or only its gradients are harder
    to follow (Athalye et al. 2018): flagged if it gains less under one of these.
    """
    name = QUANTISED_GRADIENTS
    stood = fp32.keys() & {PGD} | int8.keys() & {GRAPH_ATTACK}
    if missing := [attack for attack in (PGD, GRAPH_ATTACK) if attack not in stood]:
        reason = f"needs packs of {PGD} and {GRAPH_ATTACK}: there is none of {missing[0]}"
        return Check(name=name, flagged=None, evidence=reason)
    n, own_fp32, own_int8 = len(fp32[PGD]), fp32[PGD], int8[GRAPH_ATTACK]
    gained = own_int8.astype(np.int64) - own_fp32
    evidence = (
        f"under the attack on itself int8 is right on {_percent(own_int8)} of {n}, fp32 on "
        f"{_percent(own_fp32)}"
    )
    masked = False
    for attack, text in ((PGD, "the attack on fp32"), (SQUARE, "Square")):
        if attack not in fp32 or attack not in int8:
            continue
        evidence += f"; under {text} {_percent(int8[attack])} and {_percent(fp32[attack])}"
        more = gained - (int8[attack].astype(np.int64) - fp32[attack])
        masked |= _markedly(more)
    if _markedly(gained) and masked:
        return Check(name=name, flagged=True, evidence=evidence)
    if n < MIN_IMAGES:
        reason = f"needs {MIN_IMAGES} images or more, there were {n}"
        return Check(name=name, flagged=None, evidence=reason)
    # What was made on fp32 need not fit int8: standing that as well shows nothing.
    if _markedly(gained) and (SQUARE not in fp32 or SQUARE not in int8):
        return Check(name=name, flagged=None, evidence=WITHOUT_SQUARE)
    return Check(name=name, flagged=False, evidence=evidence)


def _markedly(gained: Int64) -> bool:
    """More than chance, and more than a trifle.  gained: (N,) by image, 0 for no difference."""
    num_up, num_down = int((gained > 0).sum()), int((gained < 0).sum())
    return bool(sign_test(num_up, num_down) < P_VALUE and gained.mean() >= SHARE)


def check_square_part(num_fooled: int, num_left: int, num_images: int) -> Check:
    """Flag AutoAttack's own Square fooling many of the images that its white-box parts left."""
    return Check(
        name="square",
        flagged=num_fooled > max(2, SQUARE_GAIN * num_images),
        evidence=f"AutoAttack's Square fooled {num_fooled} of the {num_left} images that its "
        f"white-box parts left, of {num_images}",
    )


def check_randomised(infer: Infer, images: UInt8, labels: Int64, batch_size: int = 250) -> Check:
    """Flag a network that answers the same images differently, or not with numbers."""
    passes = []
    for _ in range(PASSES):
        starts = range(0, len(images), batch_size)
        parts = [infer(to_float(images[start : start + batch_size])) for start in starts]
        logits = np.concatenate(parts).astype(np.float64)
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            evidence = f"logits of {int((~finite).sum())} of {len(images)} images are not finite"
            return Check(name="randomised output", flagged=True, evidence=evidence)
        passes.append(logits / (np.linalg.norm(logits, axis=1, keepdims=True) + 1e-10))
    difference = float(np.abs(np.array(passes) - passes[0]).max())
    right = [int((one.argmax(axis=1) == labels).sum()) for one in passes]
    return Check(
        name="randomised output",
        flagged=difference > RANDOM_TOLERANCE or len(set(right)) > 1,
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
