"""What one process takes of a batch: its samples with λ = 0, and those that are attacked.

N samples of the batch on all processes, n with λ = 0 and m others in this process, K knots
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from oat_edge.train.distributed import Ranks
from oat_edge.train.sampling import knot_weights


class Samples(NamedTuple):
    """Images of one kind, and what they train with."""

    images: Tensor
    """(n, C, H, W) in [0, 1]; there may be none."""
    labels: Tensor
    """(n,) int64."""
    lam: Tensor
    """(n,)"""
    hat: Tensor
    """(n, K) weights over the knots."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A batch, or this process's share of it."""

    clean: Samples | None
    """λ = 0; None where the whole batch has none, so that no process makes that pass."""
    robust: Samples | None
    """λ > 0; None likewise."""
    among: Tensor
    """(M,) bool: which of all processes' samples with λ > 0 are this one's."""
    num_samples: int
    """N."""
    clean_weight: float = 1.0
    """Of the losses of `clean`, and"""
    robust_weight: float = 1.0
    """of those of `robust`."""


def shard(
    images: Tensor,
    labels: Tensor,
    knot_index: Tensor,
    knots: Tensor,
    ranks: Ranks,
    *,
    all_clean: float | None = None,
) -> Shard:
    """Divide a batch that is the same on all processes.

    images: (N, C, H, W); labels: (N,); knot_index: (N,), as `sample_knots` draws it; knots: (K,).
    all_clean: all images train at λ = 0 too, with this weight, the rest of 1 being that of λ > 0.
    """
    hat = knot_weights(knot_index, len(knots)).to(images.dtype)
    lam = hat @ knots.to(images.dtype)
    clean = lam == 0
    mine = ranks.share_of(clean)

    def part(chosen: Tensor) -> Samples:
        return Samples(images[chosen], labels[chosen], lam[chosen], hat[chosen])

    if all_clean is not None:
        at_zero = torch.zeros_like(knot_index[mine])
        zero_hat = knot_weights(at_zero, len(knots)).to(images.dtype)
        return Shard(
            clean=Samples(images[mine], labels[mine], zero_hat @ knots.to(images.dtype), zero_hat),
            robust=part(mine),
            among=mine,
            num_samples=len(images),
            clean_weight=all_clean,
            robust_weight=1 - all_clean,
        )
    return Shard(
        clean=part(clean & mine) if clean.any() else None,
        robust=None if clean.all() else part(~clean & mine),
        among=mine[~clean],
        num_samples=len(images),
    )
