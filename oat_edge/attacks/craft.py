"""Make an attack pack: white-box images on the folded network, on the 8-bit grid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from oat_edge.attacks.stages import ATTACKS, COST, Logits, attack_settings, run_stage
from oat_edge.evaluation.pack import AttackPack, Int64, UInt8
from oat_edge.nn.fold import FoldedNetwork


def craft_pack(
    folded: FoldedNetwork,
    images: UInt8,
    labels: Int64,
    indices: Int64,
    *,
    attack: str = "pgd20",
    width: float,
    lambdas: tuple[float, ...],
    num_classes: int,
    eps: float,
    checkpoint_sha256: str,
    seed: int,
    progress: Callable[[float], None] = lambda share: None,
) -> AttackPack:
    """Attack every image at each λ on the network of one width; `attack` is one of `ATTACKS`.

    An image counts as fooled only after rounding to the 8-bit grid; what a stage does not fool
    goes on to the next. Images that nothing fools carry PGD-20's iterate of highest loss: on an
    engine that computes a little differently it may do what it failed to do here.
    images: (N, C, H, W) uint8; labels, indices: (N,). progress is told the share done.
    """
    x = torch.from_numpy(images).to(folded.table.device).float() / 255
    y = torch.from_numpy(labels).to(folded.table.device)
    stages = tuple(dict.fromkeys(("pgd20", *ATTACKS[attack])))
    total, done = len(lambdas) * sum(COST[stage] for stage in stages), 0.0
    adversarial = np.empty((len(lambdas), *images.shape), dtype=np.uint8)
    for row, lam in enumerate(lambdas):
        logits = folded.at(torch.full((1,), lam, device=x.device))
        x_adv, right = x.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
        for stage in stages:
            _attack_what_is_left(
                stage, logits, x, y, x_adv, right, eps=eps, seed=seed, num_classes=num_classes
            )
            done += COST[stage]
            progress(done / total)
        adversarial[row] = (x_adv * 255).round().to(torch.uint8).cpu().numpy()
    return AttackPack(
        attack=attack,
        width=width,
        lambdas=lambdas,
        eps=eps,
        checkpoint_sha256=checkpoint_sha256,
        settings=pack_settings(attack, eps, seed, num_classes),
        indices=indices,
        labels=labels,
        images=images,
        adversarial=adversarial,
    )


def pack_settings(attack: str, eps: float, seed: int, num_classes: int) -> dict[str, object]:
    """What a pack says of how it was made."""
    settings = attack_settings(attack, eps, seed, num_classes)
    if attack != "pgd20":
        settings["stages"] = ["pgd20", *settings["stages"]]
        settings["pgd20"] = attack_settings("pgd20", eps, seed, num_classes)
    return {
        **settings,
        "grid": "8 bit, inside the ball; a fooling image fools after rounding",
        "not_fooled": "PGD-20's iterate of highest loss",
    }


def _attack_what_is_left(
    stage: str,
    logits: Logits,
    x: Tensor,
    y: Tensor,
    x_adv: Tensor,
    right: Tensor,
    *,
    eps: float,
    seed: int,
    num_classes: int,
) -> None:
    """One stage on the images that are still `right`; updates x_adv and right in place."""
    left = right.nonzero()[:, 0]
    if not len(left):
        return
    result = run_stage(
        stage, logits, x[left], y[left], eps=eps, seed=seed, num_classes=num_classes, on_grid=True
    )
    # The first stage leaves an image for all of them, the others only where they succeed.
    fill = left if stage == "pgd20" else left[~result.right]
    x_adv[fill] = result.x_adv if stage == "pgd20" else result.x_adv[~result.right]
    right[left] = result.right
