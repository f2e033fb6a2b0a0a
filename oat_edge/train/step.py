"""One optimiser step of OATS.

N batch, K knots, n clean samples (λ = 0), m adversarial ones (λ > 0)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oat_edge.attacks.pgd import pgd, training_step_size
from oat_edge.nn.fold import fold, refold
from oat_edge.nn.network import OATSNetwork

FilmTables = list[tuple[Tensor, Tensor]]


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
        compute_dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        """compute_dtype: of attack and training passes, None the network's (`train.precision`)."""
        self.network = network
        network.train_dtype = compute_dtype
        self.optimizer = optimizer
        self.eps = eps
        self.attack_steps = attack_steps
        self.attack_alpha = (
            training_step_size(eps, attack_steps) if attack_alpha is None else attack_alpha
        )
        self.knots = torch.tensor(network.knots, device=network.encodings.device)
        self.folded = {
            width: fold(network, width, compute_dtype=compute_dtype) for width in network.widths
        }
        if compiled:
            for folded in self.folded.values():
                folded.compile_run()

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
        for width in self.network.widths:
            loss = self.loss(images, labels, knot_index, width, leaves, generator)
            torch.autograd.backward(loss)
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
        return total / len(self.network.widths)

    def loss(
        self,
        images: Tensor,
        labels: Tensor,
        knot_index: Tensor,
        width: float,
        film: FilmTables,
        generator: torch.Generator,
    ) -> Tensor:
        """mean((1-λ)·CE(clean) + λ·CE(adversarial)) at one width (OAT, eq. 3)."""
        lam = self.knots[knot_index]
        hat = F.one_hot(knot_index, len(self.knots)).to(images.dtype)
        clean = lam == 0
        loss = torch.zeros((), device=images.device)
        if clean.any():
            x, y = images[clean], labels[clean]
            logits = self.network.train_pass(x, hat[clean], width, adversarial=False, film=film)
            loss = loss + F.cross_entropy(logits, y, reduction="sum")
        if not clean.all():
            robust = ~clean
            x, y, lam, hat = images[robust], labels[robust], lam[robust], hat[robust]
            x_adv = self._attack(x, y, lam, width, film, generator)
            # The two versions of the images pass separately, each with its own batch statistics
            # (OAT.py). Plain PGD-AT has no clean loss, hence no clean pass (Madry et al.).
            if len(self.knots) > 1 or self.knots[0] < 1:
                logits = self.network.train_pass(x, hat, width, adversarial=True, film=film)
                loss = loss + ((1 - lam) * F.cross_entropy(logits, y, reduction="none")).sum()
            logits = self.network.train_pass(x_adv, hat, width, adversarial=True, film=film)
            loss = loss + (lam * F.cross_entropy(logits, y, reduction="none")).sum()
        return loss / len(images)

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
        return pgd(
            folded.at(lam),
            x,
            y,
            eps=self.eps,
            steps=self.attack_steps,
            alpha=self.attack_alpha,
            generator=generator,
        )
