"""Adversarial weight perturbation (Wu, Xia & Wang 2020): train where the loss is worst nearby.

The weights are moved once along the gradient of the loss, each layer by γ of its norm; the loss and
its gradient are taken there, and the weights come back to the very bits they had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def perturbed(
    module: nn.Module,
    loss: Callable[[], Tensor],
    gamma: float,
    *,
    sum_: Callable[[list[Tensor]], None] = lambda gradients: None,
) -> Iterator[None]:
    """Inside, the weights of `module` are w + γ·‖w‖/‖g‖·g with g the gradient of `loss()`.

    Only weights of two or more dimensions move (not biases, not batch norm's affines), as in the
    authors' code, and only what `loss` reaches: of a slimmable layer the slice of the width in
    use, whose norm is the one meant. `loss` may move batch-norm statistics: they are put back.
    sum_: adds up the gradients of several processes' shares of the loss, in place.
    """
    weights = [w for w in module.parameters() if w.ndim > 1 and w.requires_grad]
    with kept_buffers(module):
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    moved = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
    sum_([gradient for _, gradient in moved])
    before = [w.detach().clone() for w, _ in moved]
    try:
        with torch.no_grad():
            for weight, gradient in moved:
                # Outside the slice of this width the gradient is exactly zero.
                norm = torch.where(gradient != 0, weight, 0).norm()
                weight.add_(gradient * (gamma * norm / gradient.norm().clamp(min=1e-20)))
        yield
    finally:
        with torch.no_grad():
            for (weight, _), old in zip(moved, before, strict=True):
                weight.copy_(old)


@contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """Batch-norm statistics (all buffers) are afterwards what they were."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in before:
                buffer.copy_(old)
