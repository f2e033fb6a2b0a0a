"""What the steps of a run train on: images, labels, and each sample's λ.

A batch is a function of (seed, epoch, step) alone: it does not depend on where the run was
interrupted, nor on how many processes share it.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from oat_edge.config import TrainConfig
from oat_edge.data import Dataset
from oat_edge.data.augment import augment
from oat_edge.errors import InputError
from oat_edge.train.sampling import generator_for, sample_knots


class Batch(NamedTuple):
    """One step's, the same on all processes."""

    images: Tensor
    """(N, C, H, W) float32 in [0, 1], channels last."""
    labels: Tensor
    """(N,) int64."""
    knot_index: Tensor
    """(N,), see `sample_knots`."""
    generator: torch.Generator
    """What the step draws from: attacks, widths."""


class Batches:
    """The training split on a device, and the batches of a run.

    Raises `InputError` if the batch leaves a batch norm without samples, or does not divide into
    the processes' shares.
    """

    def __init__(
        self, config: TrainConfig, dataset: Dataset, device: torch.device, *, num_ranks: int = 1
    ) -> None:
        self.config = config
        self.size = min(config.batch_size, len(dataset.train))
        self._check(num_ranks)
        self.per_epoch = len(dataset.train) // self.size
        # uint8 on the device: small data sets live there whole, no worker processes.
        self.images = torch.from_numpy(dataset.train.images).to(device)
        self.labels = torch.from_numpy(dataset.train.labels).to(device)
        # The order of an epoch; one at a time is enough.
        self._order = functools.lru_cache(maxsize=1)(self._draw_order)

    def draw(self, epoch: int, step: int) -> Batch:
        """The batch of a step; both count from 0."""
        config = self.config
        # Stream 0 of an epoch is its order; steps take 1, 2, …
        generator = generator_for(config.seed, epoch, step + 1)
        index = self._order(epoch)[step * self.size : (step + 1) * self.size]
        index = index.to(self.images.device)
        images = self.images[index].float() / 255
        images = augment(images, crop=config.crop, flip=config.flip, generator=generator)
        # Each accumulated part has its own draw: it needs samples for both batch norms.
        knot_index = [
            sample_knots(
                self.size // config.accumulate,
                len(config.lambdas),
                config.drawn_clean_share,
                generator,
                lowest_continuous=config.lowest_continuous,
            )
            for _ in range(config.accumulate)
        ]
        return Batch(
            images.contiguous(memory_format=torch.channels_last),
            self.labels[index],
            torch.cat(knot_index).to(self.images.device),
            generator,
        )

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel in [0, 1], (C,) each, exact (integer sums)."""
        values = self.images.transpose(0, 1).flatten(1)
        count = values.shape[1]
        total = values.sum(dim=1, dtype=torch.int64).double()
        squares = torch.stack([v.to(torch.int64).square().sum() for v in values]).double()
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=1.0).sqrt()
        return (mean / 255).float().cpu(), (std / 255).float().cpu()

    def _draw_order(self, epoch: int) -> Tensor:
        generator = generator_for(self.config.seed, epoch, 0)
        return torch.randperm(len(self.images), generator=generator)

    def _check(self, num_ranks: int) -> None:
        config, num_knots = self.config, len(self.config.lambdas)
        if self.size % (config.accumulate * num_ranks):
            raise InputError(
                f"a batch has {self.size} images: they do not divide into {num_ranks} "
                f"processes x {config.accumulate} accumulated parts; change --batch-size"
            )
        part = self.size // config.accumulate
        what = "a batch" if config.accumulate == 1 else "a part of a batch"
        if part < 2 * num_knots:
            raise InputError(
                f"{what} has {part} images: {num_knots} lambdas need at least {2 * num_knots}"
            )
        num_clean = math.ceil(part * config.clean_weight)
        shares = num_knots > 1 and config.clean_images == "share"
        if shares and not 2 <= num_clean <= part - 2:
            raise InputError(
                f"clean_share {config.clean_share} leaves {num_clean} of {part} images "
                "to λ = 0: batch norm needs two or more in each branch"
            )
