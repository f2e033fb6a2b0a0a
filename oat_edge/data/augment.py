"""Random crop and flip of a whole batch at once, on the device that holds it.

N images, C channels, H/W pixels
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oat_edge.errors import InputError
from oat_edge.require import require

if TYPE_CHECKING:
    import torch


def augment(
    images_NCHW: torch.Tensor, *, crop: int, flip: bool, generator: torch.Generator
) -> torch.Tensor:
    """Zero-pad by `crop`, cut a window of the old size, and mirror half of the images.

    images_NCHW: any dtype and device; the result has the same. generator: on the CPU, so that
    one seed gives one result on every device. Window and mirror are drawn for each sample.
    """
    if images_NCHW.ndim != 4:
        raise InputError(f"images have shape {tuple(images_NCHW.shape)}: expected (N, C, H, W)")
    if crop < 0:
        raise InputError(f"crop is {crop}: expected 0 or more pixels")
    if not crop and not flip:
        return images_NCHW
    require("torch", purpose="augmentation")
    import torch
    from torch.nn.functional import pad

    num, channels, height, width = images_NCHW.shape
    device = images_NCHW.device
    offsets = torch.randint(0, 2 * crop + 1, (2, num, 1), generator=generator)
    rows = offsets[0] + torch.arange(height)
    columns = offsets[1] + torch.arange(width)
    if flip:
        mirrored = torch.rand((num, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(device), columns.to(device)
    # One gather: four index tensors that broadcast to (N, C, H, W).
    return pad(images_NCHW, (crop, crop, crop, crop))[
        torch.arange(num, device=device).view(-1, 1, 1, 1),
        torch.arange(channels, device=device).view(1, -1, 1, 1),
        rows.view(num, 1, height, 1),
        columns.view(num, 1, 1, width),
    ]
