"""Checks for masked gradients that need gradients (see oat_edge.evaluation.checks)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oat_edge.attacks.stages import BATCH_SIZE, STEPS, Logits, pgd20, still_right
from oat_edge.evaluation.checks import Check, check_weaker
from oat_edge.evaluation.outcome import Bool

# Half the range: any image can be turned into any grey, and no class can be left.
LARGEST_EPS = 0.5
LARGEST_EPS_ROBUST = 0.05
ZERO_GRADIENTS = 0.01


def gradient_checks(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    pgd20_right: Tensor,
    *,
    eps: float,
    seed: int,
    batch_size: int = BATCH_SIZE,
) -> list[Check]:
    """Zero gradients; one step against many; one restart against five; growing ε.

    x: (N, C, H, W) float32 in [0, 1]; y: (N,) int64; pgd20_right: (N,) bool, right after PGD-20
    with all its restarts.
    """
    gradient = _gradient(logits, x, y, batch_size)
    single = (x + eps * gradient.sign()).clamp(0, 1)  # Goodfellow et al. 2015
    single_right = _numpy(still_right(logits, single, y, batch_size))
    # A seed of its own: the figure is to be independent of the restarts it is compared with.
    one_right = _pgd_right(logits, x, y, eps, seed + 1, batch_size)
    many_steps, restarts = f"PGD-{STEPS} with one restart", "five restarts"
    return [
        _zero_gradients(gradient, still_right(logits, x, y, batch_size)),
        check_weaker(
            "single step", "one step of ε (FGSM)", many_steps, single_right, _numpy(one_right)
        ),
        check_weaker("restarts", many_steps, restarts, _numpy(one_right), _numpy(pgd20_right)),
        _growing_eps(logits, x, y, one_right, eps, seed + 1, batch_size),
    ]


def _zero_gradients(gradient: Tensor, right: Tensor) -> Check:
    zero = (gradient.flatten(1).abs().amax(dim=1) == 0) & right
    return Check(
        name="zero gradient",
        flagged=float(zero.float().mean()) > ZERO_GRADIENTS,
        evidence=f"the gradient of the cross-entropy is exactly zero at {int(zero.sum())} of "
        f"{int(right.sum())} images that are classified right",
    )


def _growing_eps(
    logits: Logits, x: Tensor, y: Tensor, first: Tensor, eps: float, seed: int, batch_size: int
) -> Check:
    """RA over ε, doubled until every image can be turned into any grey; it must reach zero."""
    radii, robust = [eps], [float(first.float().mean())]
    while radii[-1] < LARGEST_EPS:
        radii.append(min(2 * radii[-1], LARGEST_EPS))
        right = _pgd_right(logits, x, y, radii[-1], seed, batch_size)
        robust.append(float(right.float().mean()))
    curve = ", ".join(
        f"{100 * share:.0f} % at {radius * 255:g}/255"
        for radius, share in zip(radii, robust, strict=True)
    )
    return Check(
        name="growing ε",
        flagged=robust[-1] > LARGEST_EPS_ROBUST,
        evidence=f"right under PGD-{STEPS}: {curve}; the last should be about 0",
    )


def _pgd_right(
    logits: Logits, x: Tensor, y: Tensor, eps: float, seed: int, batch_size: int
) -> Tensor:
    """(N,) right after PGD-20 with one restart."""
    return pgd20(logits, x, y, eps=eps, seed=seed, restarts=1, batch_size=batch_size).right


def _gradient(logits: Logits, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """(N, C, H, W) of the cross-entropy."""
    gradient = torch.empty_like(x)
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        image = x[part].clone().requires_grad_(True)
        loss = F.cross_entropy(logits(image), y[part], reduction="sum")
        (gradient[part],) = torch.autograd.grad(loss, image)
    return gradient


def _numpy(right: Tensor) -> Bool:
    out: Bool = right.cpu().numpy()
    return out
