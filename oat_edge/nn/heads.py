"""One classifier per width (SOLAR, WACV 2026, arXiv 2509.16833).

Widths share their features and differ in how many they have; a classifier of its own lets each
weigh what it has. Costs (inputs + 1) x classes parameters per width, and nothing at run time: a
folded network has one head either way.
"""

from __future__ import annotations

from torch import Tensor, nn

from oat_edge.nn.condition import Condition
from oat_edge.nn.slimmable import SlimmableConv2d, SlimmableLinear


class WidthHeads(nn.Module):
    """Takes the place of the last layer; each width's head starts as that layer's slice."""

    condition: Condition

    def __init__(self, head: SlimmableConv2d | SlimmableLinear, condition: Condition) -> None:
        super().__init__()
        self.__dict__["condition"] = condition
        self.heads = nn.ModuleList(head.plain(index) for index in range(len(head.in_widths)))

    def forward(self, input: Tensor) -> Tensor:
        """input: what the sliced layer would take."""
        logits: Tensor = self.heads[self.condition.width_index](input)
        return logits
