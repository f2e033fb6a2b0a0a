"""What changes along a run: the learning rate, and what weight averaging takes in."""

from __future__ import annotations

import math

from oat_edge.config import TrainConfig


def cosine(lr: float, done: int, total: int) -> float:
    """Cosine from lr to 0 over `total` steps."""
    return lr * 0.5 * (1 + math.cos(math.pi * done / total))


def rate_at(config: TrainConfig, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step; epoch and step count from 0."""
    done = epoch * steps_per_epoch + step
    if config.swa_start is not None:  # averaging needs weights that still move
        done = min(done, _swa_epochs(config) * steps_per_epoch)
    return cosine(config.lr, done, config.epochs * steps_per_epoch)


def averages_after(config: TrainConfig, num_epochs: int) -> bool:
    """Whether SWA takes in the weights after this many epochs."""
    return config.swa_start is not None and num_epochs > _swa_epochs(config)


def _swa_epochs(config: TrainConfig) -> int:
    """Whole epochs before SWA begins."""
    return int((config.swa_start or 0.0) * config.epochs)
