"""OATS as its papers write it down: the baseline of the benchmarks and the oracle of the tests.

Nothing here knows of folding. Every norm keeps both batch norms, FiLM's MLP runs on every sample
in every pass, and layers slice the full weights. Only λ at the knots is defined, as in the
authors' code.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oat_edge.attacks.pgd import training_step_size
from oat_edge.nn.conditional_norm import ConditionalBatchNorm2d
from oat_edge.nn.film import FiLM
from oat_edge.nn.network import OATSNetwork


class Shared:
    """What the norms of one network read during a pass."""

    def __init__(self) -> None:
        self.lam: Tensor = torch.zeros(0)
        self.encoding: Tensor = torch.zeros(0)
        self.branches: tuple[bool, ...] = ()  # which of (clean, adversarial) this pass needs


class StraightforwardNorm(nn.Module):
    """Two batch norms, `where`, and FiLM per sample."""

    def __init__(self, norm: ConditionalBatchNorm2d, shared: Shared) -> None:
        super().__init__()
        self.__dict__["shared"] = shared
        self.__dict__["condition"] = norm.condition
        self.clean, self.adversarial = norm.clean, norm.adversarial
        self.film: FiLM | None = norm.film

    def forward(self, x: Tensor) -> Tensor:
        shared, index = self.shared, self.condition.width_index
        if shared.branches == (True, True):
            is_clean = (shared.lam == 0).view(-1, 1, 1, 1)
            y = torch.where(is_clean, self.clean[index](x), self.adversarial[index](x))
        else:
            y = (self.clean if shared.branches[0] else self.adversarial)[index](x)
        if self.film is None:
            return y
        gamma, beta = self.film(shared.encoding)
        channels = y.shape[1]
        return y * gamma[:, :channels, None, None] + beta[:, :channels, None, None]


class StraightforwardNetwork(nn.Module):
    """A copy of an OATS network whose norms are straightforward."""

    def __init__(self, network: OATSNetwork) -> None:
        super().__init__()
        network = copy.deepcopy(network)
        self.__dict__["shared"] = shared = Shared()
        self.__dict__["condition"] = network.condition
        self.backbone = network.backbone
        self.widths, self.knots = network.widths, network.knots
        self.register_buffer("encodings", network.encodings)
        self.register_buffer("knot_values", torch.tensor(network.knots))
        for name, norm in network.norms():
            self.backbone.set_submodule(name, StraightforwardNorm(norm, shared))
        self.width = 1.0

    def forward(self, image: Tensor, lam: Tensor) -> Tensor:
        """image: (N, C, H, W); lam: (N,), each one of the knots."""
        return self.run(image, lam, branches=(True, True))

    def run(self, image: Tensor, lam: Tensor, *, branches: tuple[bool, bool]) -> Tensor:
        knot = (lam[:, None] - self.knot_values).abs().argmin(dim=1)
        self.shared.lam, self.shared.encoding = lam, self.encodings[knot]
        self.shared.branches = branches
        self.condition.width_index = self.widths.index(self.width)
        return self.backbone(image)


def straightforward_step(
    net: StraightforwardNetwork,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    lam: Tensor,
    generator: torch.Generator,
    *,
    eps: float,
    attack_steps: int,
) -> Tensor:
    """One OATS step, same mathematics and random numbers as `oat_edge.train.step.OATSStep`."""
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros(())
    alpha = training_step_size(eps, attack_steps)
    clean = lam == 0
    x0, y0 = images[clean], labels[clean]
    x, y, lam1 = images[~clean], labels[~clean], lam[~clean]
    for width in net.widths:
        net.width = width
        net.eval()
        net.requires_grad_(False)
        x_adv = x + torch.empty(x.shape).uniform_(-eps, eps, generator=generator)
        x_adv = torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)
        for _ in range(attack_steps):
            x_adv.requires_grad_(True)
            loss = F.cross_entropy(net.run(x_adv, lam1, branches=(False, True)), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + alpha * gradient.sign()
            x_adv = torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)
        net.requires_grad_(True)
        net.train()
        loss = F.cross_entropy(net.run(x0, lam[clean], branches=(True, False)), y0, reduction="sum")
        logits = net.run(x, lam1, branches=(False, True))
        loss = loss + ((1 - lam1) * F.cross_entropy(logits, y, reduction="none")).sum()
        logits = net.run(x_adv, lam1, branches=(False, True))
        loss = loss + (lam1 * F.cross_entropy(logits, y, reduction="none")).sum()
        loss = loss / len(images)
        loss.backward()
        total += loss.detach()
    optimizer.step()
    return total / len(net.widths)
