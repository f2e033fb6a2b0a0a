"""Which λ each sample of a batch trains with, and seeds that do not depend on where one is."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def sample_knots(
    batch_size: int,
    num_knots: int,
    clean_share: float | None,
    generator: torch.Generator,
    *,
    lowest_continuous: int | None = None,
) -> Tensor:
    """Index of each sample's knot, (N,) int64 on the CPU.

    ceil(share·N) samples at random places take knot 0 (λ = 0; share None is 1/K, OAT.py); the
    others, with share 0 all, are uniform over the remaining knots. With `lowest_continuous` they
    are uniform from that index to the last, float32: 2.25 is a quarter of the way from 2 to 3.
    """
    if num_knots == 1:
        return torch.zeros(batch_size, dtype=torch.int64)
    share = 1 / num_knots if clean_share is None else clean_share
    num_clean = min(math.ceil(share * batch_size), batch_size - 1)
    if lowest_continuous is None:
        index = torch.randint(1, num_knots, (batch_size,), generator=generator)
    else:
        index = torch.empty(batch_size)
        index.uniform_(lowest_continuous, num_knots - 1, generator=generator)
    index[torch.randperm(batch_size, generator=generator)[:num_clean]] = 0
    return index


def knot_weights(knot_index: Tensor, num_knots: int) -> Tensor:
    """Weights over the knots of what `sample_knots` drew, (N, K) of its dtype.

    As `oat_edge.conditioning.hat_weights` of the same λ: one-hot at a knot, and two linear weights
    between two.
    """
    knots = torch.arange(num_knots, device=knot_index.device)
    return (1 - (knot_index.unsqueeze(1) - knots).abs()).clamp(min=0)


def sample_widths(
    widths: tuple[float, ...], num_between: int | None, generator: torch.Generator
) -> tuple[float, ...]:
    """Widths of one step, growing: the narrowest, the widest and `num_between` random others.

    The sandwich rule (Yu & Huang 2019, sec. 3.2). None: all of them, and nothing is drawn.
    """
    between = widths[1:-1]
    if num_between is None or num_between >= len(between):
        return widths
    drawn = torch.randperm(len(between), generator=generator)[:num_between].sort().values
    return (widths[0], *[between[index] for index in drawn.tolist()], widths[-1])


def choice(widths: tuple[float, ...], generator: torch.Generator) -> float:
    """One of them, each with equal chance."""
    return widths[int(torch.randint(len(widths), (), generator=generator))]


def generator_for(seed: int, epoch: int, step: int) -> torch.Generator:
    """The random stream of one training step: the same whether or not the run was interrupted."""
    state = np.random.SeedSequence([seed, epoch, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
