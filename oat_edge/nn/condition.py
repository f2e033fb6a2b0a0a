"""What the layers of one converted network share during a forward pass.

    N batch, K knots, C channels

A plain Python object, kept out of the module tree, carries the condition to the layers, so that
no forward signature of any architecture has to change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from oat_edge.conditioning import ramps
from oat_edge.nn.global_norm import Gather


@dataclass(slots=True)
class Condition:
    """Set by the network before its backbone runs, read by the converted layers."""

    width_index: int = 0
    adversarial: bool = False
    """Branch of a training pass: every sample of one pass goes through one batch norm."""
    hat: Tensor | None = None
    """(N, K) weights over the knots."""
    film: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """(gamma, beta), each (K, C), of every FiLM layer at the knots."""
    gather: Gather | None = None
    """Where a batch lies on several processes: how its batch norms meet."""


class HatWeights(nn.Module):
    """`oat_edge.conditioning.hat_weights` as a module: same float32 operations, traceable."""

    origin: Tensor
    width: Tensor
    difference: Tensor
    first: Tensor

    def __init__(self, knots: tuple[float, ...], *, through_zero: bool = False) -> None:
        super().__init__()
        self.knots = knots
        self.num_knots = len(knots)
        self.through_zero = through_zero
        if self.num_knots == 1:
            return
        constants = ramps(knots, through_zero=through_zero)
        # hats = first + ramps @ difference: hat_0 = 1 - ramp_1, hat_j = ramp_j - ramp_{j+1}.
        difference = torch.eye(self.num_knots)[1:] - torch.eye(self.num_knots)[:-1]
        values = {
            "origin": torch.tensor(constants.origin),
            "width": torch.tensor(constants.width),
            "difference": difference,
            "first": torch.eye(self.num_knots)[0],
        }
        for name, value in values.items():
            # Not persistent: they follow from the knots, which the spec holds.
            self.register_buffer(name, value, persistent=False)

    def forward(self, lam: Tensor) -> Tensor:
        """lam: (N,) float32, clipped to [0, 1]. Returns (N, K) float32."""
        lam_n1 = lam.clamp(0, 1).unsqueeze(1)
        if self.num_knots == 1:
            return torch.ones_like(lam_n1)
        rising = ((lam_n1 - self.origin) / self.width).clamp(0, 1)
        if not self.through_zero:
            rising = torch.cat([lam_n1.sign(), rising], dim=1)
        return torch.addmm(self.first, rising, self.difference)
