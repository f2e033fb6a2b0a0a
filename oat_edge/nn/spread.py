"""Per-channel values laid out so that the CPU's inner loops are long.

    N batch, C channels, H/W pixels

In channels-last memory the innermost loop of `x * scale`, scale (N, C, 1, 1), is only C long:
with 16 channels in bfloat16 it is no vector at all, and costs ten times the multiplication. As
(N, C, 1, W) the loop runs over a row of pixels. Same values, same operations, same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor


def spread(values: Tensor, x: Tensor) -> Tensor:
    """Repeat (N or 1, C, 1, 1) along the rows of x (N, C, H, W), where that is faster.

    Returns (N or 1, C, 1, W) in channels-last memory, or `values` itself.
    """
    if not spread_pays(x):
        return values
    wide = values.expand(-1, -1, 1, x.shape[3])
    return wide.contiguous(memory_format=torch.channels_last)


def spread_pays(x: Tensor) -> bool:
    """Whether x is what `spread` is made for; compilers and GPUs need no such help."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )
