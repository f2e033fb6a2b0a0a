"""White-box attacks as stages, each on the images that the ones before left.

N images, C channels, H/W pixels, K classes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oat_edge.attacks import autoattack
from oat_edge.attacks.pgd import pgd, uniform_noise
from oat_edge.evaluation.pack import levels

Logits = Callable[[Tensor], Tensor]

STEPS, RESTARTS = 20, 5
STEPS_PER_RADIUS = 4  # alpha is 2/255 at 8/255, the usual choice for PGD-20
BATCH_SIZE = 250  # the authors' own; AutoAttack draws anew for every batch

# attack -> its stages. APGD is the first half of AutoAttack, so AutoAttack includes it.
ATTACKS: dict[str, tuple[str, ...]] = {
    "pgd20": ("pgd20",),
    "apgd": ("apgd-ce", "apgd-t"),
    "autoattack": ("apgd-ce", "apgd-t", "fab-t", "square-aa"),
}
# Time of a stage on an image that it does not fool, about; for estimates of the time left.
COST = {"pgd20": 1.0, "apgd-ce": 1.0, "apgd-t": 9.0, "fab-t": 14.0, "square-aa": 22.0}


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage left of N images."""

    x_adv: Tensor
    """(N, C, H, W) float32: fooling images where there are any, else the last tried or x."""
    right: Tensor
    """(N,) bool: still classified right."""
    warnings: tuple[str, ...] = ()


def run_stage(
    stage: str,
    logits: Logits,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    seed: int,
    num_classes: int,
    on_grid: bool = False,
    batch_size: int = BATCH_SIZE,
) -> StageResult:
    """Attack images with one stage.

    logits: (N, C, H, W) -> (N, K), deterministic and in eval mode. x: float32 in [0, 1], on the
    8-bit grid if `on_grid`; y: (N,) int64. on_grid: an image counts as fooling only if it still
    does after rounding to 8 bits inside the ball, and that is what is returned.
    """
    if stage == "pgd20":
        return pgd20(logits, x, y, eps=eps, seed=seed, on_grid=on_grid, batch_size=batch_size)
    x_adv, right, warnings = autoattack.autoattack_part(
        stage, logits, x, y, eps=eps, seed=seed, num_classes=num_classes, batch_size=batch_size
    )
    if on_grid:
        x_adv = to_grid(x_adv, x, eps)
        right = still_right(logits, x_adv, y, batch_size)
    return StageResult(x_adv, right, warnings)


def attack_settings(attack: str, eps: float, seed: int, num_classes: int) -> dict[str, Any]:
    """How an attack is set; equal settings on equal images give equal images."""
    settings: dict[str, Any] = {"seed": seed, "stages": list(ATTACKS[attack])}
    if attack == "pgd20":
        return {
            **settings,
            "steps": STEPS,
            "restarts": RESTARTS,
            "alpha": eps / STEPS_PER_RADIUS,
            "random_start": True,
            "iterate": "highest loss",
            "restarts_attack": "images that the ones before left",
        }
    settings |= {
        "implementation": autoattack.implementation(),
        "iterations": autoattack.ITERATIONS,
        "restarts": 1,
        "targets": autoattack.num_targets(num_classes),
        "batch_size": BATCH_SIZE,
        "stages_attack": "images that the ones before left",
    }
    return settings | ({"queries": autoattack.QUERIES} if attack == "autoattack" else {})


def to_grid(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """Nearest 8-bit image inside the ball around x, itself on the grid; float32 in [0, 1].

    `round(255 * result)` are the exact levels.
    """
    original = (x * 255).round()
    step = ((x_adv - x) * 255).round().clamp(-levels(eps), levels(eps))
    return (original + step).clamp(0, 255) / 255


@torch.no_grad()
def still_right(logits: Logits, x: Tensor, y: Tensor, batch_size: int = BATCH_SIZE) -> Tensor:
    """(N,) bool: classified as y. Logits that are not all finite are wrong."""
    right = torch.empty(len(x), dtype=torch.bool, device=x.device)
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        out = logits(x[part])
        right[part] = out.isfinite().all(dim=1) & (out.argmax(dim=1) == y[part])
    return right


def pgd20(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    seed: int,
    restarts: int = RESTARTS,
    on_grid: bool = False,
    batch_size: int = BATCH_SIZE,
) -> StageResult:
    """PGD-20 from random starts; a restart attacks the images that the ones before left.

    One restart alone was seen to overstate RA by half.
    """
    generator = torch.Generator().manual_seed(seed)
    found = x.clone()
    right = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for _ in range(restarts):
        if not right.any():
            break
        for left in torch.split(right.nonzero()[:, 0], batch_size):
            x_adv = pgd(
                logits,
                x[left],
                y[left],
                eps=eps,
                steps=STEPS,
                alpha=eps / STEPS_PER_RADIUS,
                noise=uniform_noise(x[left], eps, generator),
                keep_best=True,
            )
            found[left] = to_grid(x_adv, x[left], eps) if on_grid else x_adv
            right[left] = still_right(logits, found[left], y[left])
    return StageResult(found, right)
