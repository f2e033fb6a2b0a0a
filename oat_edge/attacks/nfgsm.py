"""N-FGSM: one signed gradient step from a noisy image (de Jorge et al. 2022, "Make Some Noise").

A cheap attack for training. It is no measure of robustness: its images may leave the ball.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from oat_edge.attacks.pgd import uniform_noise

# Noise is uniform within this many eps, the authors' k: strong noise is what prevents the collapse
# of plain FGSM ("catastrophic overfitting").
NOISE = 2.0


def n_fgsm(
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    generator: torch.Generator,
    among: Tensor | None = None,
) -> Tensor:
    """Images x + noise + eps·sign(gradient at x + noise), not projected onto the ball.

    logits: (N, C, H, W) -> (N, K), in eval mode, its parameters without gradients. x: (N, C, H, W)
    float32 in [0, 1]; y: (N,) int64, or (N, K) probabilities. generator: on the CPU. Returns
    x_adv, same shape, in [0, 1], |x_adv - x| <= 3 eps: the noise counts as augmentation, and the
    step alone is as long as the ball is wide. among: as `uniform_noise` takes it.
    """
    noise = uniform_noise(x, NOISE * eps, generator, among)
    noisy = (x + noise).clamp(0, 1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits(noisy), y, reduction="sum"), noisy)
    return (noisy.detach() + eps * gradient.sign()).clamp(0, 1)
