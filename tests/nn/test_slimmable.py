from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from oat_edge.nn.condition import Condition
from oat_edge.nn.slimmable import SlimmableConv2d, SlimmableLinear, scaled_channels

WIDTHS = (0.25, 0.5, 1.0)


@given(st.integers(1, 4096), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_channels_grow_with_width_and_stay_in_range(channels: int, a: float, b: float) -> None:
    narrow, wide = sorted((a, b))
    assert 1 <= scaled_channels(channels, narrow) <= scaled_channels(channels, wide) <= channels
    assert abs(scaled_channels(channels, narrow) - max(1, channels * narrow)) <= 0.5 + 1e-9
    assert scaled_channels(channels, 1.0) == channels


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_width_computes_with_the_first_channels(index: int, mode: str) -> None:
    conv = nn.Conv2d(8, 12, 3, padding=1, stride=2, padding_mode=mode)  # type: ignore[arg-type]
    condition = Condition(width_index=index)
    layer = SlimmableConv2d.convert(conv, condition, WIDTHS, head=False)
    in_channels, out = scaled_channels(8, WIDTHS[index]), scaled_channels(12, WIDTHS[index])
    x = torch.randn(2, 8, 9, 9)
    x[:, in_channels:] = 0  # the full layer then sees the narrow input
    torch.testing.assert_close(layer(x[:, :in_channels]), conv(x)[:, :out])


def test_depthwise_convolution_keeps_each_channel_to_itself() -> None:
    conv = nn.Conv2d(8, 8, 3, groups=8)
    layer = SlimmableConv2d.convert(conv, Condition(width_index=1), WIDTHS, head=False)
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(layer(x[:, :4]), conv(x)[:, :4])


def test_grouped_convolution_drops_whole_groups() -> None:
    conv = nn.Conv2d(8, 16, 3, groups=4)
    layer = SlimmableConv2d.convert(conv, Condition(width_index=1), WIDTHS, head=False)
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(layer(x[:, :4]), conv(x)[:, :8])


def test_a_classifier_keeps_its_outputs() -> None:
    linear = nn.Linear(8, 10)
    layer = SlimmableLinear.convert(linear, Condition(width_index=0), WIDTHS, head=True)
    assert layer(torch.randn(3, 2)).shape == (3, 10)
