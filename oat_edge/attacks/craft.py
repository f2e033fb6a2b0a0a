"""Make an attack pack: white-box images on the folded network, on the 8-bit grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oat_edge.attacks.pgd import pgd
from oat_edge.evaluation.pack import AttackPack, Int64, UInt8, levels
from oat_edge.nn.fold import FoldedNetwork

STEPS, RESTARTS = 20, 5
STEPS_PER_RADIUS = 4  # alpha is 2/255 at 8/255, the usual choice for PGD-20


def craft_pack(
    folded: FoldedNetwork,
    images: UInt8,
    labels: Int64,
    indices: Int64,
    *,
    width: float,
    lambdas: tuple[float, ...],
    eps: float,
    checkpoint_sha256: str,
    seed: int,
    batch_size: int = 250,
    progress: Callable[[int], None] = lambda images: None,
) -> AttackPack:
    """PGD-20 with five restarts at each λ, on the network of one width.

    A restart attacks the images that are still classified right after rounding to the 8-bit grid
    (one restart alone was seen to overstate RA by half). images: (N, C, H, W) uint8; labels,
    indices: (N,). progress is told of every batch's size.
    """
    alpha = eps / STEPS_PER_RADIUS
    adversarial = np.empty((len(lambdas), *images.shape), dtype=np.uint8)
    generator = torch.Generator().manual_seed(seed)
    device = folded.table.device
    for row, lam in enumerate(lambdas):
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            x = torch.from_numpy(images[batch]).to(device).float() / 255
            y = torch.from_numpy(labels[batch]).to(device)
            worst = _worst_of_restarts(folded, x, y, lam, eps, alpha, generator)
            adversarial[row, batch] = worst.cpu().numpy()
            progress(len(x))
    return AttackPack(
        attack=f"pgd{STEPS}",
        width=width,
        lambdas=lambdas,
        eps=eps,
        checkpoint_sha256=checkpoint_sha256,
        settings=attack_settings(eps, seed),
        indices=indices,
        labels=labels,
        images=images,
        adversarial=adversarial,
    )


def attack_settings(eps: float, seed: int) -> dict[str, Any]:
    """What a pack says of how it was made; equal settings give equal images."""
    return {
        "steps": STEPS,
        "restarts": RESTARTS,
        "alpha": eps / STEPS_PER_RADIUS,
        "seed": seed,
        "random_start": True,
        "iterate": "highest loss",
    }


def _worst_of_restarts(
    folded: FoldedNetwork,
    x: Tensor,
    y: Tensor,
    lam: float,
    eps: float,
    alpha: float,
    generator: torch.Generator,
) -> Tensor:
    """(N, C, H, W) uint8: of each image the first that fools the network, else the last tried."""
    found = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    left = torch.arange(len(x), device=x.device)
    for _ in range(RESTARTS):
        if not len(left):
            break
        logits = folded.at(torch.full((len(left),), lam, device=x.device))
        x_adv = pgd(
            logits,
            x[left],
            y[left],
            eps=eps,
            steps=STEPS,
            alpha=alpha,
            generator=generator,
            keep_best=True,
        )
        found[left] = to_grid(x_adv, x[left], eps)
        with torch.no_grad():
            right = logits(found[left].float() / 255).argmax(dim=1) == y[left]
        left = left[right]
    return found


def to_grid(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """Nearest 8-bit image inside the ball around x, itself on the grid. Returns uint8."""
    original = (x * 255).round()
    step = ((x_adv - x) * 255).round().clamp(-levels(eps), levels(eps))
    return (original + step).clamp(0, 255).to(torch.uint8)
