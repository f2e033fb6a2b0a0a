"""λ to weights over its knots: the one definition that torch, the exporters and tests share.

    N batch, K knots

A network is conditioned at K knots 0 = k_0 < k_1 < … < k_{K-1} = 1. A sample's λ becomes a row
of K hat weights: λ = 0 takes knot 0 alone (the clean branch); λ > 0 is a piecewise-linear hat
over k_1 … k_{K-1} (the adversarial branch) and is clamped to k_1 below it. The two branches are
never blended. At a knot the row is exactly one-hot, in float32, so the paper's values come out
bit for bit.

A network with one set of batch statistics for all λ has no branches to keep apart: there the hat
runs through zero, over all knots alike.

A single knot is a dedicated network (λ = 0: standard training, λ = 1: PGD-AT): its weight is 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oat_edge.errors import InputError

Float32 = npt.NDArray[np.float32]

# OAT, sec. 4.1: the values that λ is drawn from in training.
PAPER_KNOTS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)


def check_knots(lambdas: tuple[float, ...]) -> tuple[float, ...]:
    """Return `lambdas` as floats if they are valid knots, else raise `InputError`."""
    knots = tuple(float(lam) for lam in lambdas)
    if not knots or not all(0.0 <= lam <= 1.0 for lam in knots):
        raise InputError(f"lambdas are {knots}: expected at least one value, all in [0, 1]")
    if (np.diff(np.asarray(knots, dtype=np.float32)) <= 0).any():
        raise InputError(f"lambdas are {knots}: expected strictly growing values")
    if len(knots) > 1 and (knots[0] != 0.0 or knots[-1] != 1.0):
        raise InputError(
            f"lambdas are {knots}: several knots must start at 0 and end at 1 "
            "(a single value trains a dedicated network)"
        )
    return knots


@dataclass(frozen=True, slots=True)
class Ramps:
    """Constants of `hat_weights` for the gaps that it is linear in; float32.

    K-2 gaps between the knots above zero, or through zero all K-1.

    ramp_j = clip((λ - origin_j) / width_j, 0, 1) rises from 0 at one knot to 1 at the next.
    Widths are float32 differences of float32 knots: at a knot the quotient is x / x, exactly 1.
    """

    origin: Float32
    width: Float32


def ramps(knots: tuple[float, ...], *, through_zero: bool = False) -> Ramps:
    """The ramps over two or more `knots`."""
    ends = np.asarray(knots if through_zero else knots[1:], dtype=np.float32)
    return Ramps(ends[:-1], np.diff(ends))


def hat_weights(
    lam: npt.ArrayLike, knots: tuple[float, ...], *, through_zero: bool = False
) -> Float32:
    """Weights over the knots.  lam: (N,) in [0, 1] (clipped to it). Returns (N, K) float32.

    Each hat is the difference of two neighbouring ramps; the first ramp is the step at λ = 0, or
    with `through_zero` the one from knot 0 to knot 1.
    """
    lam_n1 = np.clip(np.asarray(lam, dtype=np.float32).reshape(-1, 1), 0, 1)
    if len(knots) == 1:
        return np.ones_like(lam_n1)
    c = ramps(knots, through_zero=through_zero)
    rising = np.clip((lam_n1 - c.origin) / c.width, 0, 1)
    if not through_zero:
        rising = np.concatenate([np.sign(lam_n1), rising], axis=1)
    ones, zeros = np.ones_like(lam_n1), np.zeros_like(lam_n1)
    weights: Float32 = np.hstack([ones, rising]) - np.hstack([rising, zeros])
    return weights
