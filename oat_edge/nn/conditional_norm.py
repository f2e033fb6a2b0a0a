"""Dual batch norm with FiLM, one set per width; and the variants that are compared with it.

    N batch, K knots, C channels, H/W pixels

OAT, sec. 4.1: λ = 0 goes through the clean batch norm, λ > 0 through the adversarial one; FiLM
then scales and shifts by λ. With running statistics all of it is one affine map per sample and
channel, and `affine_tables` is where that map is made (DESIGN, section 2).

With a single branch all λ share one set of statistics, and the scale and shift by λ are all that
tells them apart: the affine parameters, not the statistics, are said to carry dual batch norm's
effect (arXiv 2403.19150).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oat_edge.nn.condition import Condition
from oat_edge.nn.film import FiLM, KnotTable
from oat_edge.nn.global_norm import batch_norm
from oat_edge.nn.slimmable import scaled_channels
from oat_edge.nn.spread import spread


class ConditionalBatchNorm2d(nn.Module):
    """Takes the place of one BatchNorm2d of a converted network."""

    condition: Condition

    def __init__(
        self,
        norm: nn.BatchNorm2d,
        condition: Condition,
        widths: tuple[float, ...],
        knots: tuple[float, ...],
        *,
        film: FiLM | KnotTable | None,
        film_index: int,
        single: bool = False,
    ) -> None:
        """single: one branch for all λ."""
        super().__init__()
        self.__dict__["condition"] = condition
        self.knots = knots
        channels = [scaled_channels(norm.num_features, width) for width in widths]
        # A branch that no knot uses does not exist (dedicated networks have one).
        self.clean = _copies(norm, channels) if knots[0] == 0 and not single else None
        self.adversarial = _copies(norm, channels) if knots[-1] > 0 and not single else None
        self.single = _copies(norm, channels) if single else None
        self.film = film
        self.film_index = film_index

    def branch(self, *, adversarial: bool, width_index: int) -> nn.BatchNorm2d:
        """The batch norm of one branch at one width."""
        branch = self.adversarial if adversarial else self.clean
        if self.single is not None:
            branch = self.single
        assert branch is not None, "no knot uses this branch"
        norm = branch[width_index]
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def affine_tables(self, width_index: int) -> tuple[Tensor, Tensor]:
        """Scale and shift at the knots, each (K, C): y = scale·x + shift in eval mode."""
        made: dict[bool, tuple[Tensor, Tensor]] = {}  # by branch: knots share them
        for adversarial in {lam > 0 for lam in self.knots}:
            norm = self.branch(adversarial=adversarial, width_index=width_index)
            assert norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            made[adversarial] = scale, norm.bias - norm.running_mean * scale
        scales, shifts = zip(*(made[lam > 0] for lam in self.knots), strict=True)
        scale_kc, shift_kc = torch.stack(scales), torch.stack(shifts)
        if self.film is None:
            return scale_kc, shift_kc
        gamma, beta = self._film(scale_kc.shape[1])
        return gamma * scale_kc, gamma * shift_kc + beta

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W).

        In training one branch with its own batch statistics, for all N (and the N of the other
        processes of a run, if there are); in eval mode each sample's own branch and FiLM, through
        the tables.
        """
        condition = self.condition
        assert condition.hat is not None, "call the network, not its backbone"
        if not self.training:
            scale, shift = self.affine_tables(condition.width_index)
            return torch.addcmul(
                _per_channel(condition.hat @ shift), x, _per_channel(condition.hat @ scale)
            )
        norm = self.branch(adversarial=condition.adversarial, width_index=condition.width_index)
        y = batch_norm(norm, x, condition.gather)
        if self.film is None:
            return y
        gamma, beta = self._film(y.shape[1])
        if y.dtype == gamma.dtype:
            return torch.addcmul(
                _per_channel(condition.hat @ beta), y, _per_channel(condition.hat @ gamma)
            )
        with torch.autocast(y.device.type, enabled=False):  # the tables' sums stay in float32
            gamma, beta = (condition.hat @ gamma).to(y.dtype), (condition.hat @ beta).to(y.dtype)
        # In float32 this gains nothing, and would round the gradients' sums differently.
        return torch.addcmul(spread(_per_channel(beta), y), y, spread(_per_channel(gamma), y))

    def _film(self, channels: int) -> tuple[Tensor, Tensor]:
        gamma, beta = self.condition.film[self.film_index]
        return gamma[:, :channels], beta[:, :channels]


def _copies(norm: nn.BatchNorm2d, channels: list[int]) -> nn.ModuleList:
    """One batch norm per width, each starting from the first channels of `norm`."""
    copies = []
    for count in channels:
        copy = nn.BatchNorm2d(count, eps=norm.eps, momentum=norm.momentum)
        state = norm.state_dict()
        copy.load_state_dict({k: v[:count] if v.ndim else v for k, v in state.items()})
        copies.append(copy)
    return nn.ModuleList(copies)


def _per_channel(table_nc: Tensor) -> Tensor:
    return table_nc[:, :, None, None]
