"""One optimiser step of OATS.

N batch, K knots, n clean samples (λ = 0), m adversarial ones (λ > 0)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oat_edge.attacks.pgd import pgd, training_step_size
from oat_edge.nn.fold import fold, refold
from oat_edge.nn.network import OATSNetwork, TrainPass
from oat_edge.train.sampling import knot_weights

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
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.eps = eps
        self.attack_steps = attack_steps
        self.attack_alpha = (
            training_step_size(eps, attack_steps) if attack_alpha is None else attack_alpha
        )
        self.knots = torch.tensor(network.knots, device=network.encodings.device)
        self.folded = {width: fold(network, width) for width in network.widths}

    def __call__(
        self, images: Tensor, labels: Tensor, knot_index: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Train on one batch; returns the loss, mean over samples and widths, without gradient.

        images: (N, C, H, W) float32 in [0, 1]; labels: (N,) int64; knot_index: (N,), as
        `sample_knots` draws it.
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
        hat = knot_weights(knot_index, len(self.knots)).to(images.dtype)
        lam = hat @ self.knots.to(images.dtype)
        clean = lam == 0
        robust = ~clean
        # What each pass adds: weights of its samples' losses (None is 1), labels, and the pass. The
        # two versions of the images at λ > 0 are passes of their own (OAT.py). Plain PGD-AT has no
        # clean loss, hence no clean pass (Madry et al.).
        terms: list[tuple[Tensor | None, Tensor, TrainPass]] = []
        if clean.any():
            passing = TrainPass(images[clean], hat[clean], adversarial=False)
            terms.append((None, labels[clean], passing))
        if robust.any():
            x, y, lam, hat = images[robust], labels[robust], lam[robust], hat[robust]
            x_adv = self._attack(x, y, lam, width, film, generator)
            if len(self.knots) > 1 or self.knots[0] < 1:
                terms.append((1 - lam, y, TrainPass(x, hat, adversarial=True)))
            terms.append((lam, y, TrainPass(x_adv, hat, adversarial=True)))
        all_logits = self.network.train_passes([t[2] for t in terms], width, film=film)
        loss = torch.zeros((), device=images.device)
        for (weight, y, _), logits in zip(terms, all_logits, strict=True):
            if weight is None:
                loss = loss + F.cross_entropy(logits, y, reduction="sum")
            else:
                loss = loss + (weight * F.cross_entropy(logits, y, reduction="none")).sum()
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
