"""One optimiser step of OATS.

N batch, K knots, n clean samples (λ = 0), m adversarial ones (λ > 0)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from oat_edge.attacks.nfgsm import n_fgsm
from oat_edge.attacks.pgd import pgd, training_step_size
from oat_edge.config import Attack, Loss, ShareAttack, TrainConfig
from oat_edge.nn.fold import fold, refold
from oat_edge.nn.network import OATSNetwork
from oat_edge.train.awp import perturbed
from oat_edge.train.losses import LOSSES, LossOptions, cross_entropy
from oat_edge.train.sampling import choice, sample_widths

FilmTables = list[tuple[Tensor, Tensor]]
Pair = tuple[Tensor, Tensor]  # of the n samples with λ = 0 and of the m others


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOptions:
    """The fields of `TrainConfig` that change what a step does; the defaults are plain OATS."""

    loss: Loss = "oat"
    trades_beta: float = 6.0
    label_smoothing: float = 0.0
    sandwich: int | None = None
    distill: bool = False
    attack: Attack = "pgd"
    share_attack: ShareAttack = "off"
    awp_gamma: float = 0.0

    @classmethod
    def of(cls, config: TrainConfig) -> StepOptions:
        """Those of a training run."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(config, name) for name in names})


class OATSStep:
    """Attack, forward and backward at every width, then one step of the optimiser.

    The attack runs on the folded network of its width, each sample at its own λ. FiLM's MLPs run
    once per step on the K knots; the widths' gradients meet in its tables and go back through
    the MLPs together.
    """

    def __init__(
        self,
        network: OATSNetwork,
        optimizer: torch.optim.Optimizer,
        *,
        eps: float,
        attack_steps: int,
        attack_alpha: float | None = None,
        options: StepOptions | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.eps = eps
        self.attack_steps = attack_steps
        self.attack_alpha = (
            training_step_size(eps, attack_steps) if attack_alpha is None else attack_alpha
        )
        self.options = options or StepOptions()
        self.robust_loss = LOSSES[self.options.loss]
        self.loss_options = LossOptions(
            label_smoothing=self.options.label_smoothing, trades_beta=self.options.trades_beta
        )
        self.knots = torch.tensor(network.knots, device=network.encodings.device)
        self.folded = {width: fold(network, width) for width in network.widths}

    def __call__(
        self, images: Tensor, labels: Tensor, knot_index: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Train on one batch; returns the loss, mean over samples and widths, without gradient.

        images: (N, C, H, W) float32 in [0, 1]; labels: (N,) int64; knot_index: (N,) int64.
        """
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        film = self.network.film_tables()
        leaves = [(g.detach().requires_grad_(), b.detach().requires_grad_()) for g, b in film]
        total = torch.zeros((), device=images.device)
        options, all_widths = self.options, self.network.widths
        widths = sample_widths(all_widths, options.sandwich, generator)
        if options.distill:
            widths = widths[::-1]  # the widest teaches, so it comes first
        shared = None
        if options.share_attack != "off":
            widest = options.share_attack == "widest"
            attacked = all_widths[-1] if widest else choice(widths, generator)
            shared = self.craft(images, labels, knot_index, attacked, leaves, generator)
        teacher: Pair | None = None
        for width in widths:
            x_adv = shared
            if x_adv is None:
                x_adv = self.craft(images, labels, knot_index, width, leaves, generator)
            passes = functools.partial(
                self.passes, images, labels, knot_index, width, leaves, x_adv, teacher
            )
            with self._perturbed(passes):
                loss, logits = passes()
                torch.autograd.backward(loss)
            if options.distill and teacher is None:
                teacher = logits[0].detach().softmax(dim=1), logits[1].detach().softmax(dim=1)
            total += loss.detach()
        pairs = [
            (table, leaf.grad)
            for tables, grads in zip(film, leaves, strict=True)
            for table, leaf in zip(tables, grads, strict=True)
            if leaf.grad is not None
        ]
        if pairs:
            torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
        self.optimizer.step()
        return total / len(widths)

    def loss(
        self,
        images: Tensor,
        labels: Tensor,
        knot_index: Tensor,
        width: float,
        film: FilmTables,
        generator: torch.Generator,
    ) -> Tensor:
        """The loss of one width on its own adversarial images, mean over the batch."""
        x_adv = self.craft(images, labels, knot_index, width, film, generator)
        return self.passes(images, labels, knot_index, width, film, x_adv)[0]

    def craft(
        self,
        images: Tensor,
        labels: Tensor,
        knot_index: Tensor,
        width: float,
        film: FilmTables,
        generator: torch.Generator,
    ) -> Tensor:
        """Adversarial versions of the images with λ > 0, each at its own λ; (m, C, H, W)."""
        lam = self.knots[knot_index]
        robust = lam > 0
        if not robust.any():
            return images[robust]
        x, y, lam = images[robust], labels[robust], lam[robust]
        return self._attack(x, y, lam, width, film, generator)

    def passes(
        self,
        images: Tensor,
        labels: Tensor,
        knot_index: Tensor,
        width: float,
        film: FilmTables,
        x_adv: Tensor,
        teacher: Pair | None = None,
    ) -> tuple[Tensor, Pair]:
        """Loss of one width, mean over the batch, and its logits on the clean images.

        x_adv: (m, C, H, W) from `craft`. teacher: the widest's probabilities on the *clean*
        images, (n, K) and (m, K), in place of the labels, also for this width's own adversarial
        images: they show the same thing, they were made against this width and not the teacher,
        and what a robust teacher says of the clean image is the better label for both (RSLAD,
        Zi et al. 2021). It is at the sample's own λ, and costs no further pass.
        """
        lam = self.knots[knot_index]
        hat = F.one_hot(knot_index, len(self.knots)).to(images.dtype)
        clean = lam == 0
        targets = (labels[clean], labels[~clean]) if teacher is None else teacher
        loss = torch.zeros((), device=images.device)
        logits_clean = logits_robust = images.new_zeros(0, 1)
        if clean.any():
            logits_clean = self.network.train_pass(
                images[clean], hat[clean], width, adversarial=False, film=film
            )
            loss = loss + cross_entropy(
                logits_clean, targets[0], self.loss_options, reduction="sum"
            )
        if not clean.all():
            robust = ~clean
            hat = hat[robust]
            # The two versions of the images pass separately, each with its own batch statistics
            # (OAT.py). Plain PGD-AT has no clean loss, hence no clean pass (Madry et al.).
            seen = None
            if len(self.knots) > 1 or self.knots[0] < 1 or self.robust_loss.needs_clean:
                seen = self.network.train_pass(
                    images[robust], hat, width, adversarial=True, film=film
                )
            logits = self.network.train_pass(x_adv, hat, width, adversarial=True, film=film)
            for term in self.robust_loss.terms(
                seen, logits, targets[1], lam[robust], self.loss_options
            ):
                loss = loss + term
            logits_robust = logits if seen is None else seen
        return loss / len(images), (logits_clean, logits_robust)

    def _perturbed(
        self, passes: Callable[[], tuple[Tensor, Pair]]
    ) -> contextlib.AbstractContextManager[None]:
        gamma = self.options.awp_gamma
        if not gamma:
            return contextlib.nullcontext()
        return perturbed(self.network.backbone, lambda: passes()[0], gamma)

    def _attack(
        self,
        x: Tensor,
        y: Tensor,
        lam: Tensor,
        width: float,
        film: FilmTables,
        generator: torch.Generator,
    ) -> Tensor:
        folded = self.folded[width]
        refold(folded, self.network, width, film=film)
        logits = folded.at(lam)
        if not self.robust_loss.attacks_labels:
            # Away from the clean output: the KL of TRADES has the gradient of this cross-entropy.
            with torch.no_grad():
                y = logits(x).softmax(dim=1)
        if self.options.attack == "n-fgsm":
            return n_fgsm(logits, x, y, eps=self.eps, generator=generator)
        return pgd(
            logits,
            x,
            y,
            eps=self.eps,
            steps=self.attack_steps,
            alpha=self.attack_alpha,
            generator=generator,
        )
