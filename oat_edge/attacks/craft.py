"""Make an attack pack: white-box images on one width's network, on the 8-bit grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from oat_edge.attacks.stages import ATTACKS, COST, Logits, attack_settings, run_stage
from oat_edge.evaluation.pack import AttackPack, Int64, UInt8


class Attackable(Protocol):
    """A `FoldedNetwork`, or a `GraphNetwork` that takes λ: a module with buffers."""

    def at(self, lam: Tensor) -> Logits:
        """Fix λ (1,): a differentiable function from images to logits."""

    def buffers(self) -> Iterator[Tensor]:
        """They tell the device."""


def craft_pack(
    network: Attackable,
    images: UInt8,
    labels: Int64,
    indices: Int64,
    *,
    attack: str = "pgd20",
    name: str | None = None,
    crafted_on: Mapping[str, str] | None = None,
    width: float,
    lambdas: tuple[float, ...],
    num_classes: int,
    eps: float,
    checkpoint_sha256: str,
    seed: int,
    progress: Callable[[float], None] = lambda share: None,
) -> AttackPack:
    """Attack every image at each λ on the network of one width; `attack` is one of `ATTACKS`.

    name: of the pack, None is the attack's. crafted_on: facts of an exported file, None is the
    network of the checkpoint.

    An image counts as fooled only after rounding to the 8-bit grid; what a stage does not fool
    goes on to the next. Images that nothing fools carry PGD-20's iterate of highest loss: on an
    engine that computes a little differently it may do what it failed to do here.
    images: (N, C, H, W) uint8; labels, indices: (N,). progress is told the share done.
    """
    device = next(network.buffers()).device
    x = torch.from_numpy(images).to(device).float() / 255
    y = torch.from_numpy(labels).to(device)
    stages = tuple(dict.fromkeys(("pgd20", *ATTACKS[attack])))
    total, done = len(lambdas) * sum(COST[stage] for stage in stages), 0.0
    adversarial = np.empty((len(lambdas), *images.shape), dtype=np.uint8)
    for row, lam in enumerate(lambdas):
        logits = network.at(torch.full((1,), lam, device=x.device))
        x_adv, right = x.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
        for stage in stages:
            _attack_what_is_left(
                stage, logits, x, y, x_adv, right, eps=eps, seed=seed, num_classes=num_classes
            )
            done += COST[stage]
            progress(done / total)
        adversarial[row] = (x_adv * 255).round().to(torch.uint8).cpu().numpy()
    return AttackPack(
        attack=name or attack,
        width=width,
        lambdas=lambdas,
        eps=eps,
        checkpoint_sha256=checkpoint_sha256,
        settings=pack_settings(attack, eps, seed, num_classes, crafted_on),
        indices=indices,
        labels=labels,
        images=images,
        adversarial=adversarial,
    )


def pack_settings(
    attack: str,
    eps: float,
    seed: int,
    num_classes: int,
    crafted_on: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """What a pack says of how it was made."""
    settings = attack_settings(attack, eps, seed, num_classes)
    if crafted_on is not None:
        settings["crafted_on"] = dict(crafted_on)
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
