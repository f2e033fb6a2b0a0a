"""Batch norm whose batch lies in parts on several processes.

    N images of this process (there may be none), C channels, H/W pixels, P processes

torch's own SyncBatchNorm is for GPUs only, and each process must have an image. Mean and squared
deviations of the parts are merged by the formula of Chan, Golub and LeVeque (1979), which loses no
digits, from one exchange in the forward pass; the backward pass takes one more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Gather = Callable[[Tensor], Tensor]
"""A tensor of this process -> (P, …), that of every process."""


def batch_norm(norm: nn.BatchNorm2d, x: Tensor, gather: Gather | None) -> Tensor:
    """`norm(x)` in training, over all processes.  x: (N, C, H, W). gather None: this one alone.

    Every process must call it at the same time, one without images too.
    """
    if gather is None:
        y: Tensor = norm(x)
        return y
    y, mean, var, count = _GlobalBatchNorm.apply(  # type: ignore[no-untyped-call]
        x, norm.weight, norm.bias, norm.eps, gather
    )
    with torch.no_grad():
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
        # As torch has it: None is the plain mean over all batches so far.
        momentum = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        unbiased = var * count / (count - 1)
        for running, value in ((norm.running_mean, mean), (norm.running_var, unbiased)):
            assert running is not None
            running += momentum * (value.to(running.dtype) - running)
    return y


class _GlobalBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, gather: Gather
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        pixels = x.numel() // channels
        own_mean = wide.sum((0, 2, 3)) / max(pixels, 1)
        own_m2 = (wide - _per_channel(own_mean)).square().sum((0, 2, 3))
        parts = gather(torch.cat([own_mean, own_m2, own_mean.new_full((1,), pixels)]))
        means, m2s, counts = torch.split(parts, [channels, channels, 1], dim=1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        var = (m2s + counts * (means - mean).square()).sum(0) / count
        rstd = torch.rsqrt(var + eps)
        scale = weight * rstd
        y = torch.addcmul(_per_channel(bias - mean * scale), wide, _per_channel(scale))
        ctx.save_for_backward(x, weight, mean, rstd, count)
        ctx.gather = gather
        ctx.mark_non_differentiable(mean, var, count)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, rstd, count = ctx.saved_tensors
        dy_wide = dy.to(mean.dtype)
        x_hat = (x.to(mean.dtype) - _per_channel(mean)) * _per_channel(rstd)
        d_bias = dy_wide.sum((0, 2, 3))
        d_weight = (dy_wide * x_hat).sum((0, 2, 3))
        # The images of all processes have moved the mean and the variance of this one's.
        all_bias, all_weight = ctx.gather(torch.cat([d_bias, d_weight])).sum(0).chunk(2)
        centred = (
            dy_wide - _per_channel(all_bias / count) - x_hat * _per_channel(all_weight / count)
        )
        dx = (_per_channel(weight * rstd) * centred).to(x.dtype)
        # Those of the parameters stay this process's share, as all other gradients do.
        return dx, d_weight, d_bias, None, None


def _per_channel(value: Tensor) -> Tensor:
    return value[:, None, None]
