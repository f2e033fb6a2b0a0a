"""What a width's logits cost: losses over (λ, clean and adversarial logits), as a registry.

    m samples with λ > 0, K classes

A loss returns its terms, each summed over the samples; the step divides by the batch. Targets are
labels (m,) int64, or a teacher's probabilities (m, K).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RobustLoss:
    """A loss of the samples with λ > 0."""

    terms: Callable[[Tensor | None, Tensor, Tensor, Tensor, LossOptions], list[Tensor]]
    """(clean logits, adversarial logits, targets, λ (m,), options) -> terms."""
    needs_clean: bool
    """Whether a network of λ = 1 alone trains on clean images too; others always do."""
    attacks_labels: bool
    """The attack moves away from the label; otherwise from the network's own clean output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossOptions:
    """See `TrainConfig`."""

    label_smoothing: float = 0.0
    trades_beta: float = 6.0


def cross_entropy(
    logits: Tensor, targets: Tensor, options: LossOptions, reduction: str = "none"
) -> Tensor:
    """Per sample, (m,). Smoothing is for labels: a teacher's output is soft already."""
    smoothing = 0.0 if targets.is_floating_point() else options.label_smoothing
    return F.cross_entropy(logits, targets, reduction=reduction, label_smoothing=smoothing)


def oat(
    clean: Tensor | None,
    adversarial: Tensor,
    targets: Tensor,
    lam: Tensor,
    options: LossOptions,
) -> list[Tensor]:
    """(1-λ)·CE(clean) + λ·CE(adversarial) (OAT, eq. 3); clean None: λ is 1."""
    robust = (lam * cross_entropy(adversarial, targets, options)).sum()
    if clean is None:
        return [robust]
    return [((1 - lam) * cross_entropy(clean, targets, options)).sum(), robust]


def trades(
    clean: Tensor | None,
    adversarial: Tensor,
    targets: Tensor,
    lam: Tensor,
    options: LossOptions,
) -> list[Tensor]:
    """CE(clean) + λ·β·KL(clean ‖ adversarial) (Zhang et al. 2019, eq. 5, with λ on β).

    The two ways to bring λ in are one: OAT's mixture with TRADES as the robust part,
    (1-λ)·CE + λ·(CE + β·KL), is CE + λβ·KL. So λ = 0 is standard training, λ = 1 TRADES at β, and a
    knot between them TRADES at the smaller β that its authors turn by hand for the same trade-off.
    As in their code, gradients reach both outputs.
    """
    assert clean is not None, "TRADES needs clean logits"
    kl = F.kl_div(
        adversarial.log_softmax(dim=1), clean.log_softmax(dim=1), reduction="none", log_target=True
    )
    return [
        cross_entropy(clean, targets, options).sum(),
        options.trades_beta * (lam * kl.sum(dim=1)).sum(),
    ]


LOSSES: dict[str, RobustLoss] = {
    "oat": RobustLoss(terms=oat, needs_clean=False, attacks_labels=True),
    "trades": RobustLoss(terms=trades, needs_clean=True, attacks_labels=False),
}
