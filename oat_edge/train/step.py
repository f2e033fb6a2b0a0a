"""One optimiser step of OATS.

N samples of the batch, n with λ = 0 and m others in this process
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oat_edge.attacks.nfgsm import n_fgsm
from oat_edge.attacks.pgd import pgd, training_step_size, uniform_noise
from oat_edge.config import Attack, Loss, ShareAttack, TrainConfig
from oat_edge.nn.fold import fold, refold
from oat_edge.nn.network import OATSNetwork, TrainPass
from oat_edge.train.awp import perturbed
from oat_edge.train.distributed import ALONE, Ranks
from oat_edge.train.losses import LOSSES, LossOptions, cross_entropy
from oat_edge.train.sampling import choice, sample_widths
from oat_edge.train.shard import Shard, shard

FilmTables = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOptions:
    """The fields of `TrainConfig` that change what a step does; the defaults are plain OATS."""

    all_clean: float | None = None
    """λ = 0's weight where all images train at it; None: those that drew it."""
    loss: Loss = "oat"
    trades_beta: float = 6.0
    label_smoothing: float = 0.0
    sandwich: int | None = None
    distill: bool = False
    attack: Attack = "pgd"
    share_attack: ShareAttack = "off"
    awp_gamma: float = 0.0
    accumulate: int = 1

    @classmethod
    def of(cls, config: TrainConfig) -> StepOptions:
        """Those of a training run."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "all_clean"]
        all_clean = config.clean_weight if config.clean_images == "all" else None
        return cls(all_clean=all_clean, **{name: getattr(config, name) for name in names})


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """The widest width's probabilities on clean images, in place of the labels."""

    clean: Tensor | None
    """(n, K)"""
    robust: Tensor | None
    """(m, K)"""


class OATSStep:
    """Attack, forward and backward at every width, then one step of the optimiser.

    The attack runs on the folded network of its width, each sample at its own λ. FiLM's MLPs run
    once per step on the K knots; the widths' gradients meet in its tables and go back through
    the MLPs together. Of several processes each takes a share of the batch; the batch statistics
    and the gradients are those of all.
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
        compute_dtype: torch.dtype | None = None,
        compiled: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        """compute_dtype: of attack and training passes, None the network's (`train.precision`)."""
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
        self.ranks = ranks
        network.train_dtype = compute_dtype
        network.condition.gather = ranks.gather if ranks.size > 1 else None
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

        The batch and the generator are the same on all processes.
        images: (N, C, H, W) float32 in [0, 1]; labels: (N,) int64; knot_index: (N,), as
        `sample_knots` draws it.
        """
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        film = self.network.film_tables()
        leaves = [(g.detach().requires_grad_(), b.detach().requires_grad_()) for g, b in film]
        widths = sample_widths(self.network.widths, self.options.sandwich, generator)
        total = images.new_zeros(())
        # One part after the other saves memory; each has its own batch statistics.
        num_parts = self.options.accumulate
        parts = (tensor.chunk(num_parts) for tensor in (images, labels, knot_index))
        for x, y, index in zip(*parts, strict=True):
            batch = self._shard(x, y, index)
            total += self._backward(batch, widths, leaves, generator)
        pairs = [
            (table, leaf.grad)
            for tables, grads in zip(film, leaves, strict=True)
            for table, leaf in zip(tables, grads, strict=True)
            if leaf.grad is not None
        ]
        if pairs:
            torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
        # Every process has made the same passes, so the same parameters have a gradient.
        self.ranks.sum_([p.grad for p in self.network.parameters() if p.grad is not None] + [total])
        self.optimizer.step()
        return total / len(widths)

    def _backward(
        self, batch: Shard, widths: Sequence[float], film: FilmTables, generator: torch.Generator
    ) -> Tensor:
        """Add the gradients of every width; returns the sum of their losses."""
        options, shared, teacher = self.options, None, None
        if options.share_attack != "off":
            widest = options.share_attack == "widest"
            attacked = self.network.widths[-1] if widest else choice(tuple(widths), generator)
            shared = self.craft(batch, attacked, film, generator)
        losses = []
        # The widest teaches, so it comes first.
        for width in reversed(widths) if options.distill else widths:
            x_adv = self.craft(batch, width, film, generator) if shared is None else shared
            passes = functools.partial(self.passes, batch, width, film, x_adv, teacher)
            with self._perturbed(passes):
                loss, taught = passes()
                loss = loss / options.accumulate
                torch.autograd.backward(loss)
            if options.distill and teacher is None:
                teacher = taught
            losses.append(loss.detach())
        return torch.stack(losses).sum()

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
        batch = self._shard(images, labels, knot_index)
        return self.passes(batch, width, film, self.craft(batch, width, film, generator))[0]

    def _shard(self, images: Tensor, labels: Tensor, knot_index: Tensor) -> Shard:
        all_clean = self.options.all_clean
        return shard(images, labels, knot_index, self.knots, self.ranks, all_clean=all_clean)

    def craft(
        self, batch: Shard, width: float, film: FilmTables, generator: torch.Generator
    ) -> Tensor | None:
        """Adversarial versions of the images with λ > 0, each at its own λ; (m, C, H, W)."""
        if batch.robust is None:
            return None
        x, y, lam, _ = batch.robust
        folded = self.folded[width]
        refold(folded, self.network, width, film=film)
        logits = folded.at(lam)
        if not self.robust_loss.attacks_labels:
            # Away from the clean output: the KL of TRADES has the gradient of this cross-entropy.
            with torch.no_grad():
                y = logits(x).softmax(dim=1)
        if self.options.attack == "n-fgsm":
            return n_fgsm(logits, x, y, eps=self.eps, generator=generator, among=batch.among)
        return pgd(
            logits,
            x,
            y,
            eps=self.eps,
            steps=self.attack_steps,
            alpha=self.attack_alpha,
            noise=uniform_noise(x, self.eps, generator, batch.among),
        )

    def passes(
        self,
        batch: Shard,
        width: float,
        film: FilmTables,
        x_adv: Tensor | None,
        teacher: Teacher | None = None,
    ) -> tuple[Tensor, Teacher]:
        """Loss of one width, mean over the batch (several processes': the sum is this mean), and
        what this width would teach.

        x_adv: (m, C, H, W) from `craft`. teacher: in place of the labels, also for this width's own
        adversarial images: they show the same thing, they were made against this width and not the
        teacher, and what a robust teacher says of the clean image is the better label for both
        (RSLAD, Zi et al. 2021). It is at the sample's own λ, and costs no further pass.
        """
        clean, robust = batch.clean, batch.robust
        passes: dict[str, TrainPass] = {}
        if clean is not None:
            passes["clean"] = TrainPass(clean.images, clean.hat, adversarial=False)
        if robust is not None:
            # The two versions of the images are passes of their own (OAT.py). Plain PGD-AT has no
            # clean loss, hence no clean pass (Madry et al.).
            if len(self.knots) > 1 or self.knots[0] < 1 or self.robust_loss.needs_clean:
                passes["seen"] = TrainPass(robust.images, robust.hat, adversarial=True)
            assert x_adv is not None, "craft images for a batch with λ > 0 first"
            passes["attacked"] = TrainPass(x_adv, robust.hat, adversarial=True)
        outputs = self.network.train_passes(list(passes.values()), width, film=film)
        logits = dict(zip(passes, outputs, strict=True))
        terms = []
        taught_clean = taught_robust = None
        if clean is not None:
            targets = clean.labels if teacher is None else teacher.clean
            assert targets is not None
            term = cross_entropy(logits["clean"], targets, self.loss_options, reduction="sum")
            terms.append(batch.clean_weight * term)
            taught_clean = logits["clean"].detach().softmax(dim=1)
        if robust is not None:
            targets = robust.labels if teacher is None else teacher.robust
            assert targets is not None
            seen = logits.get("seen")
            terms += [
                batch.robust_weight * term
                for term in self.robust_loss.terms(
                    seen, logits["attacked"], targets, robust.lam, self.loss_options
                )
            ]
            source = logits["attacked"] if seen is None else seen
            taught_robust = source.detach().softmax(dim=1)
        loss = sum(terms, start=torch.zeros_like(terms[0])) / batch.num_samples
        return loss, Teacher(clean=taught_clean, robust=taught_robust)

    def _perturbed(
        self, passes: Callable[[], tuple[Tensor, Teacher]]
    ) -> contextlib.AbstractContextManager[None]:
        gamma = self.options.awp_gamma
        if not gamma:
            return contextlib.nullcontext()
        return perturbed(self.network.backbone, lambda: passes()[0], gamma, sum_=self.ranks.sum_)
