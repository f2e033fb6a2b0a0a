"""Spreading changes the layout of values, never a result."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.nn.spread import spread, spread_pays

SIZES = st.integers(1, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(n=SIZES, c=SIZES, h=SIZES, w=SIZES, one=st.booleans())
def test_an_affine_has_the_same_bits(
    dtype: torch.dtype, n: int, c: int, h: int, w: int, one: bool
) -> None:
    generator = torch.Generator().manual_seed(n + 10 * c + 100 * h + 1000 * w)
    x = torch.randn(n, c, h, w, generator=generator).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    rows = 1 if one else n
    scale, shift = torch.randn(2, rows, c, 1, 1, generator=generator).to(dtype)
    expected = torch.addcmul(shift, x, scale)
    assert torch.equal(torch.addcmul(spread(shift, x), x, spread(scale, x)), expected)


def test_only_channels_last_images_are_helped() -> None:
    values, x = torch.rand(2, 3, 1, 1), torch.rand(2, 3, 4, 5)
    assert not spread_pays(x)
    assert spread(values, x) is values
    assert spread(values, x.contiguous(memory_format=torch.channels_last)).shape == (2, 3, 1, 5)
