"""Square attack in the L-infinity ball (Andriushchenko et al., ECCV 2020): needs logits only.

    N images, C channels, H/W pixels, K classes

It runs against an engine as it is deployed, quantisation included, and needs numpy alone. The
search visits only x - ε and x + ε, clipped to the pixel range; with ε a whole number of 8-bit
levels it therefore runs in integers and is the published attack all the same. Squares are drawn
as in the paper, per image and over all places; AutoAttack's code draws one place for the whole
batch and never reaches the last row and column.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.errors import InputError
from oat_edge.evaluation.accuracy import to_float
from oat_edge.evaluation.pack import Int64, UInt8, levels
from oat_edge.runtime.runner import Float32

Bool = npt.NDArray[np.bool_]
# Share of the pixels in the first squares; the authors' and AutoAttack's.
P_INIT = 0.8
# Where p is halved, in ten-thousandths of the queries (the authors' attack.py, p_selection).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True, slots=True)
class SquareResult:
    """What the attack found for each image."""

    adversarial: UInt8
    """(N, C, H, W): the image that fooled the network, else the one of smallest margin."""
    right: Bool
    """(N,) whether the network classifies `adversarial` right."""
    queries: Int64
    """(N,) images like this one that the network was shown, the stripes included."""


def square_attack(
    infer: Callable[[Float32], Float32],
    images: UInt8,
    labels: Int64,
    *,
    eps: float,
    num_queries: int = 5000,
    p_init: float = P_INIT,
    seed: int = 0,
    batch_size: int = 250,
    progress: Callable[[int], None] = lambda queries: None,
) -> SquareResult:
    """Lower each image's margin by random search until its label is no longer the argmax.

    infer: (n, C, H, W) float32 in [0, 1] -> (n, K) logits; it gets only images not yet fooled,
    at most batch_size at once. images: (N, C, H, W) uint8, right when clean (the attack does not
    look: one that is wrong is attacked like the others). labels: (N,) int64. Every image gets at
    most num_queries, the first for the stripes of the start (AutoAttack does not count that one);
    the schedule of the squares' size is stretched over them, and progress is told how many are
    done. An output with NaN or infinity counts as misclassified. Equal seeds give equal
    results at any batch_size, as far as infer's logits do not depend on the batch.
    Raises `InputError` if eps is under one 8-bit level.
    """
    radius = _check(images, labels, eps, num_queries, p_init, batch_size)
    num, channels, height, width = images.shape
    low = np.maximum(images, radius) - radius
    high = np.minimum(images, 255 - radius) + radius
    rng = np.random.default_rng(seed)
    stripes = rng.integers(2, size=(num, channels, 1, width), dtype=np.bool_)
    adversarial = np.where(stripes, high, low)
    margin, right = np.full(num, np.inf), np.ones(num, dtype=np.bool_)
    queries = np.zeros(num, dtype=np.int64)
    for query in range(num_queries):
        left = np.flatnonzero(right)
        if not len(left):
            progress(num_queries - query)
            break
        side = _side(p_init, 10_000 * query // num_queries, height, width)
        # For all images, fooled or not: an image's random numbers are then its own.
        top = rng.integers(height - side + 1, size=num)
        column = rng.integers(width - side + 1, size=num)
        signs = rng.integers(2, size=(num, channels, 1, 1), dtype=np.bool_)
        now, lows, highs = (_squares(array, side) for array in (adversarial, low, high))
        for start in range(0, len(left), batch_size):
            part = left[start : start + batch_size]
            place = part, slice(None), top[part], column[part]
            before = now[place]
            if query:  # the stripes are looked at as they are
                now[place] = _proposed(before, lows[place], highs[place], signs[part])
            found, wrong = _margins(infer(to_float(adversarial[part])), labels[part])
            better = wrong | (found < margin[part])
            worse = part[~better]
            now[worse, :, top[worse], column[worse]] = before[~better]
            margin[part[better]] = found[better]
            right[part] = ~wrong
            queries[part] += 1
        progress(1)
    return SquareResult(adversarial, right, queries)


def square_settings(*, eps: float, num_queries: int, seed: int) -> dict[str, Any]:
    """How the attack is set, as reports say it."""
    return {
        "eps": eps,
        "levels": levels(eps),
        "queries": num_queries,
        "p_init": P_INIT,
        "schedule": "as published, rescaled to the queries",
        "grid": "8 bit",
        "seed": seed,
    }


def _check(
    images: UInt8, labels: Int64, eps: float, num_queries: int, p_init: float, batch_size: int
) -> int:
    """Radius of the ball in 8-bit levels."""
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise InputError(
            f"images are {images.dtype}{images.shape} with labels {labels.shape}: "
            "expected uint8 (N, C, H, W) and (N,)"
        )
    if num_queries < 1 or batch_size < 1:
        raise InputError(
            f"num_queries is {num_queries} and batch_size {batch_size}: expected 1 or more"
        )
    if not 0 < p_init <= 1:
        raise InputError(f"p_init is {p_init:g}: expected a share of the pixels, above 0, up to 1")
    if levels(eps) < 1:
        raise InputError(f"eps is {eps:g}, under one 8-bit level (1/255): nothing could change")
    return min(levels(eps), 255)


def _side(p_init: float, place: int, height: int, width: int) -> int:
    """Pixels along a square, `place` ten-thousandths into the attack."""
    halvings = sum(place > halving for halving in HALVINGS)
    side = round(math.sqrt(p_init / 2**halvings * height * width))
    return min(max(side, 1), height, width)


def _squares(array: UInt8, side: int) -> UInt8:
    """Every square of an (N, C, H, W) array, by its corner, as a view that can be written to."""
    return np.lib.stride_tricks.sliding_window_view(
        array, (side, side), axis=(2, 3), writeable=True
    )


def _proposed(before: UInt8, low: UInt8, high: UInt8, signs: Bool) -> UInt8:
    """New content of one square per image, (n, C, side, side)."""
    proposed = np.where(signs, high, low)
    # One that changes nothing would waste a query: its opposite instead (the authors' first code
    # draws again; AutoAttack's spends the query).
    same = (proposed == before).all(axis=(1, 2, 3), keepdims=True)
    return np.where(signs ^ same, high, low)


def _margins(logits: Float32, labels: Int64) -> tuple[npt.NDArray[np.floating], Bool]:
    """The label's logit minus the best other one, and whether the network is wrong."""
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    with np.errstate(invalid="ignore"):
        margin = logits[rows, labels] - others.max(axis=1)
    wrong: Bool = (logits.argmax(axis=1) != labels) | ~np.isfinite(logits).all(axis=1)
    return margin, wrong
