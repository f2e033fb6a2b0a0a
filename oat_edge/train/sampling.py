"""Which λ each sample of a batch trains with, and seeds that do not depend on where one is."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def sample_knots(
    batch_size: int, num_knots: int, clean_share: float | None, generator: torch.Generator
) -> Tensor:
    """Index of each sample's knot, (N,) int64 on the CPU.

    ceil(share·N) samples at random places take knot 0 (λ = 0; share None is 1/K, OAT.py); the
    others are uniform over the remaining knots.
    """
    if num_knots == 1:
        return torch.zeros(batch_size, dtype=torch.int64)
    share = 1 / num_knots if clean_share is None else clean_share
    num_clean = min(math.ceil(share * batch_size), batch_size - 1)
    index = torch.randint(1, num_knots, (batch_size,), generator=generator)
    index[torch.randperm(batch_size, generator=generator)[:num_clean]] = 0
    return index


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
