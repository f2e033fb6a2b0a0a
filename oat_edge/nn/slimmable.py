"""Layers that run at several widths with one weight: a width takes the first channels of it.

The number of input channels is read off the input, so image channels are never sliced, and a
Linear after a flatten takes the features of the first channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oat_edge.nn.condition import Condition


def scaled_channels(channels: int, width_mult: float) -> int:
    """Channels left at a width: the nearest integer, halves upwards, at least 1."""
    return max(1, int(channels * width_mult + 0.5))


class SlimmableConv2d(nn.Conv2d):
    """A Conv2d whose output channels follow the width; depthwise and grouped ones too."""

    condition: Condition
    out_widths: tuple[int, ...]
    in_widths: tuple[int, ...]
    """Input channels at each width, noted by `convert`'s dry runs."""

    @classmethod
    def convert(
        cls, conv: nn.Conv2d, condition: Condition, widths: tuple[float, ...], *, head: bool
    ) -> SlimmableConv2d:
        """Take over `conv` and its parameters. head: the output is classes, never sliced."""
        layer = cls.__new__(cls)
        layer.__dict__ = {**conv.__dict__, "condition": condition}
        layer.out_widths = tuple(
            conv.out_channels if head else scaled_channels(conv.out_channels, w) for w in widths
        )
        return layer

    def sliced(self, width_index: int, in_channels: int) -> tuple[Tensor, Tensor | None, int]:
        """Weight, bias and groups for an input of `in_channels`; views, not copies."""
        in_per_group = self.in_channels // self.groups
        groups = in_channels // in_per_group if self.groups > 1 else 1
        # Groups keep their size and become fewer, so each keeps its own outputs.
        out = (
            groups * (self.out_channels // self.groups)
            if self.groups > 1
            else self.out_widths[width_index]
        )
        weight = self.weight[:out, : in_channels // groups]
        return weight, None if self.bias is None else self.bias[:out], groups

    def plain(self, width_index: int) -> nn.Conv2d:
        """The convolution that this layer is at one width, with a copy of its weights."""
        in_channels = self.in_widths[width_index]
        weight, bias, groups = self.sliced(width_index, in_channels)
        conv = nn.Conv2d(
            in_channels,
            weight.shape[0],
            kernel_size=self.kernel_size,  # type: ignore[arg-type]
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            groups=groups,
            bias=bias is not None,
            padding_mode=self.padding_mode,
        )
        _take(conv, weight, bias)
        return conv

    def forward(self, input: Tensor) -> Tensor:
        """input: (N, C, H, W), C as the width before this layer left it."""
        weight, bias, groups = self.sliced(self.condition.width_index, input.shape[1])
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        stride = self.stride
        if input.is_cpu and self._only_skips_pixels:
            # oneDNN 3.12's weight gradient of a strided 1x1 convolution writes past its memory
            # when channels are last, fewer than 16 and threads several (oneDNN issue 6035).
            input, stride = input[..., :: stride[0], :: stride[1]], (1, 1)
        return F.conv2d(input, weight, bias, stride, padding, self.dilation, groups)

    @property
    def _only_skips_pixels(self) -> bool:
        """Strided with 1x1 kernels: the same as a convolution of every stride-th pixel."""
        unpadded = self.padding in ((0, 0), "valid")
        return self.kernel_size == (1, 1) and self.stride != (1, 1) and unpadded


class SlimmableLinear(nn.Linear):
    """A Linear whose outputs follow the width, unless it is the classifier."""

    condition: Condition
    out_widths: tuple[int, ...]
    in_widths: tuple[int, ...]
    """Input channels at each width, noted by `convert`'s dry runs."""

    @classmethod
    def convert(
        cls, linear: nn.Linear, condition: Condition, widths: tuple[float, ...], *, head: bool
    ) -> SlimmableLinear:
        """Take over `linear` and its parameters. head: the output is classes, never sliced."""
        layer = cls.__new__(cls)
        layer.__dict__ = {**linear.__dict__, "condition": condition}
        layer.out_widths = tuple(
            linear.out_features if head else scaled_channels(linear.out_features, w) for w in widths
        )
        return layer

    def sliced(self, width_index: int, in_features: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias for an input of `in_features`; views, not copies."""
        out = self.out_widths[width_index]
        return self.weight[:out, :in_features], None if self.bias is None else self.bias[:out]

    def plain(self, width_index: int) -> nn.Linear:
        """The linear layer that this one is at one width, with a copy of its weights."""
        weight, bias = self.sliced(width_index, self.in_widths[width_index])
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        _take(linear, weight, bias)
        return linear

    def forward(self, input: Tensor) -> Tensor:
        """input: (…, features)."""
        return F.linear(input, *self.sliced(self.condition.width_index, input.shape[-1]))


@torch.no_grad()
def _take(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight.copy_(weight)
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(bias)
