from __future__ import annotations

import subprocess
import sys

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


@pytest.mark.parametrize("stride", [2, 3, (1, 2)])
@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("kernel", [1, 3])
def test_strides_give_the_same_outputs_and_gradients_as_torch(
    kernel: int, stride: int | tuple[int, int], size: int
) -> None:
    conv = nn.Conv2d(6, 10, kernel, stride, dtype=torch.float64)  # type: ignore[arg-type]
    layer = SlimmableConv2d.convert(conv, Condition(width_index=2), WIDTHS, head=False)
    x = torch.randn(2, 6, size, size, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(conv(x))
    ours, theirs = (
        [y, *torch.autograd.grad(y, [x, *f.parameters()], direction)]
        for f, y in ((layer, layer(x)), (conv, conv(x)))
    )
    torch.testing.assert_close(ours, theirs)


# Shortcuts of a narrow WideResNet in training: without the layer's detour around oneDNN's
# strided 1x1 weight gradient, this process dies ("double free or corruption").
NARROW_SHORTCUTS = """
import torch
from torch import nn
from oat_edge.nn.condition import Condition
from oat_edge.nn.slimmable import SlimmableConv2d

torch.set_num_threads(2)
layer = SlimmableConv2d.convert(
    nn.Conv2d(16, 32, 1, 2, bias=False), Condition(width_index=0), (0.5, 1.0), head=False
)
layer.to(memory_format=torch.channels_last)
for batch in range(1, 70):
    x = torch.rand(batch, 8, 28, 28).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(batch % 2)):
        y = layer(x)
    (ours,) = torch.autograd.grad(y, [layer.weight], torch.ones_like(y))
    true = x[:, :, ::2, ::2].sum((0, 2, 3)).expand(16, 8)
    torch.testing.assert_close(ours[:16, :8, 0, 0], true, rtol=2e-2, atol=0)
print("trained")
"""


def test_narrow_strided_shortcuts_train_on_two_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NARROW_SHORTCUTS], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
