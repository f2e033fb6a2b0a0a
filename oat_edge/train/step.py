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
from oat_edge.train.distributed import ALONE, Ranks

FilmTables = list[tuple[Tensor, Tensor]]


class OATSStep:
    """Attack, forward and backward at every width, then one step of the optimiser.

    The attack runs on the folded network of its width, each sample at its own λ. FiLM's MLPs run
    once per step on the K knots; the widths' gradients meet in its tables and go back through
    the MLPs together.

    accumulate: a batch goes through in so many parts, one after the other, to save memory; each
    part has its own batch statistics. ranks: each process takes a share of every part, and the
    batch statistics are those of the whole part.
    """

    def __init__(
        self,
        network: OATSNetwork,
        optimizer: torch.optim.Optimizer,
        *,
        eps: float,
        attack_steps: int,
        attack_alpha: float | None = None,
        accumulate: int = 1,
        ranks: Ranks = ALONE,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.eps = eps
        self.attack_steps = attack_steps
        self.attack_alpha = (
            training_step_size(eps, attack_steps) if attack_alpha is None else attack_alpha
        )
        self.accumulate = accumulate
        self.ranks = ranks
        network.condition.gather = ranks.gather if ranks.size > 1 else None
        self.knots = torch.tensor(network.knots, device=network.encodings.device)
        self.folded = {width: fold(network, width) for width in network.widths}

    def __call__(
        self, images: Tensor, labels: Tensor, knot_index: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Train on one batch; returns the loss, mean over samples and widths, without gradient.

        The batch and the generator are the same on all processes.
        images: (N, C, H, W) float32 in [0, 1]; labels: (N,) int64; knot_index: (N,) int64.
        """
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        film = self.network.film_tables()
        leaves = [(g.detach().requires_grad_(), b.detach().requires_grad_()) for g, b in film]
        total = torch.zeros((), device=images.device)
        batch = (tensor.chunk(self.accumulate) for tensor in (images, labels, knot_index))
        for x, y, index in zip(*batch, strict=True):
            for width in self.network.widths:
                loss = self.loss(x, y, index, width, leaves, generator) / self.accumulate
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
        # Every process has made the same passes, so the same parameters have a gradient.
        grads = [p.grad for p in self.network.parameters() if p.grad is not None]
        self.ranks.sum_([*grads, total])
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
        """mean((1-λ)·CE(clean) + λ·CE(adversarial)) at one width (OAT, eq. 3).

        Of several processes' losses, which are of their shares, the sum is this mean.
        """
        lam = self.knots[knot_index]
        hat = F.one_hot(knot_index, len(self.knots)).to(images.dtype)
        clean = lam == 0
        mine = self.ranks.share_of(clean)
        loss = torch.zeros((), device=images.device)
        # A pass is made by all processes or by none: their batch norms meet in it. A share may be
        # empty.
        if clean.any():
            own = clean & mine
            x, y = images[own], labels[own]
            logits = self.network.train_pass(x, hat[own], width, adversarial=False, film=film)
            loss = loss + F.cross_entropy(logits, y, reduction="sum")
        if not clean.all():
            among = mine[~clean]
            own = ~clean & mine
            x, y, lam, hat = images[own], labels[own], lam[own], hat[own]
            x_adv = self._attack(x, y, lam, width, film, generator, among)
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
        among: Tensor,
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
            among=among,
        )
