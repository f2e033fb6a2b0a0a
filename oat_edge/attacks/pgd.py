"""Projected gradient descent in the L-infinity ball (Madry et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def training_step_size(eps: float, steps: int) -> float:
    """α of the training attack, as the authors' code has it (attacks/pgd.py)."""
    return min(1.25 * eps, eps + 4 / 255) / steps


def pgd(
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    alpha: float,
    noise: Tensor,
    keep_best: bool = False,
) -> Tensor:
    """Maximise the cross-entropy by signed gradient steps from x + noise.

    logits: (N, C, H, W) -> (N, K), in eval mode, its parameters without gradients.
    x: (N, C, H, W) float32 in [0, 1]; y: (N,) int64. noise: like x, of `uniform_noise`.
    Returns x_adv, same shape, |x_adv - x| <= eps, in [0, 1]. keep_best: return each sample's
    iterate of highest loss (for evaluation) instead of the last one (for training).
    """
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    x_adv = torch.minimum(torch.maximum(x + noise, low), high)
    best, best_loss = x_adv, torch.full((len(x),), -torch.inf, device=x.device)
    for _ in range(steps):
        x_adv.requires_grad_(True)
        loss_n = F.cross_entropy(logits(x_adv), y, reduction="none")
        (gradient,) = torch.autograd.grad(loss_n.sum(), x_adv)
        with torch.no_grad():
            if keep_best:
                best, best_loss = _better(x_adv, loss_n, best, best_loss)
            x_adv = torch.minimum(torch.maximum(x_adv + alpha * gradient.sign(), low), high)
    if not keep_best:
        return x_adv
    with torch.no_grad():
        loss_n = F.cross_entropy(logits(x_adv), y, reduction="none")
        return _better(x_adv, loss_n, best, best_loss)[0]


def uniform_noise(
    x: Tensor, radius: float, generator: torch.Generator, among: Tensor | None = None
) -> Tensor:
    """Uniform in [-radius, radius], like x. generator: on the CPU.

    among: (M,) bool, N of them true, where x is a share of a batch of M; each image then gets the
    noise that it would get in that batch.
    """
    count = len(x) if among is None else len(among)
    noise = torch.empty((count, *x.shape[1:])).uniform_(-radius, radius, generator=generator)
    if among is not None:
        noise = noise[among.cpu()]
    return noise.to(x.device)


def _better(
    x_adv: Tensor, loss_n: Tensor, best: Tensor, best_loss: Tensor
) -> tuple[Tensor, Tensor]:
    better = loss_n.detach() > best_loss
    chosen = torch.where(better.view(-1, 1, 1, 1), x_adv.detach(), best)
    return chosen, torch.where(better, loss_n.detach(), best_loss)
