"""AutoAttack "standard", L-infinity (Croce & Hein 2020), by its authors' implementation.

    N batch, K classes

The package `pyautoattack` is their code. Its four attacks run one at a time here, each on the
images that the ones before left, so that a stopped evaluation continues where it was.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from oat_edge.errors import InputError
from oat_edge.require import require

# In the order of the authors: each sees the survivors of the ones before.
PARTS = {"apgd-ce": "apgd-ce", "apgd-t": "apgd-t", "fab-t": "fab-t", "square-aa": "square"}
LOGGER = "auto-attack"
ITERATIONS, TARGETS, QUERIES = 100, 9, 5000
MIN_CLASSES = 4  # the targeted DLR loss is made of four logits
BALL_SLACK = 1e-6  # float32 rounding of x ± eps


def autoattack_part(
    part: str,
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    seed: int,
    num_classes: int,
    batch_size: int,
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Run one of `PARTS` on images that are still classified right.

    logits: (N, C, H, W) -> (N, K), differentiable. x: float32 in [0, 1]; y: (N,) int64.
    Returns x_adv (x itself where the attack failed), whether each is still right (N,) bool, and
    the warnings of the authors' own checks. Raises `InputError` for fewer than four classes,
    `DependencyError` without pyautoattack.
    """
    check_num_classes(num_classes)
    package = require("pyautoattack", purpose="AutoAttack")
    with _warnings() as said, _own_random_state(x.device), _trace_kept():
        attack: Any = package.AutoAttack(logits, eps=eps, norm="Linf", seed=seed, device=x.device)
        attack.attacks_to_run = [PARTS[part]]
        # All targets there are, where there are fewer than the nine of CIFAR-10.
        attack.apgd_targeted.n_target_classes = num_targets(num_classes)
        attack.fab.n_target_classes = num_targets(num_classes)
        x_adv, predicted = attack.run_standard_evaluation(x, y, batch_size=batch_size)
    if not (x_adv - x).abs().max() <= eps + BALL_SLACK:  # NaN is no image either
        raise RuntimeError(f"{part} left the ε-ball: its figures would be worthless")
    # The package goes by the argmax alone, which is a class even of logits that are no numbers.
    right = (predicted == y) & _finite(logits, x_adv, batch_size)
    return x_adv, right, tuple(dict.fromkeys(said))


def implementation() -> str:
    """Which code runs; `DependencyError` without it."""
    require("pyautoattack", purpose="AutoAttack")
    return f"pyautoattack {metadata.version('pyautoattack')} (the authors' code)"


def num_targets(num_classes: int) -> int:
    """Target classes of the targeted attacks: nine as published, or all other classes."""
    return min(TARGETS, num_classes - 1)


def check_num_classes(num_classes: int) -> None:
    """Raise `InputError` for fewer classes than the targeted losses are defined for."""
    if num_classes < MIN_CLASSES:
        raise InputError(
            f"AutoAttack and APGD need {MIN_CLASSES} classes or more, this network has "
            f"{num_classes}: use --attack pgd,square"
        )


@torch.no_grad()
def _finite(logits: Callable[[Tensor], Tensor], x: Tensor, batch_size: int) -> Tensor:
    """(N,) bool: all logits are finite."""
    return torch.cat([logits(part).isfinite().all(dim=1) for part in torch.split(x, batch_size)])


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what the package logs as warnings; nothing of it reaches the terminal."""
    said: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage().partition(" See ")[0].strip())

    logger = logging.getLogger(LOGGER)
    handler, propagate, level = Collect(logging.WARNING), logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)  # whatever the program that imports this has set
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """The package seeds torch's global generators: give them back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _trace_kept() -> Iterator[None]:
    """One of the package's checks switches tracing (debuggers, coverage) off for good."""
    trace = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(trace)
