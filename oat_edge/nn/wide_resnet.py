"""Wide ResNets (Zagoruyko & Komodakis 2016): pre-activation blocks, depth 6n + 4."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from oat_edge.errors import InputError
from oat_edge.nn.slimmable import scaled_channels


class PreActBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions, around a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W)."""
        out = F.relu(self.bn1(x), inplace=True)
        # A projection starts from the activated input, an identity from the input itself.
        shortcut = x if self.shortcut is None else self.shortcut(out)
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(out)), inplace=True))
        return shortcut + residual


class WideResNet(nn.Module):
    """WRN-depth-widen, three stages of 16k, 32k, 64k channels, all times `width_mult`."""

    def __init__(
        self,
        depth: int,
        widen: int,
        *,
        in_channels: int,
        num_classes: int,
        stem_stride: int = 1,
        width_mult: float = 1.0,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or widen < 1:
            raise InputError(
                f"wrn-{depth}-{widen}: depth must be 6n + 4 (10, 16, 22, 28, 34, 40, …), "
                "the widening factor 1 or more"
            )
        stem, *stages = (
            scaled_channels(channels, width_mult)
            for channels in (16, 16 * widen, 32 * widen, 64 * widen)
        )
        self.conv1 = nn.Conv2d(in_channels, stem, 3, stem_stride, padding=1, bias=False)
        blocks: list[nn.Module] = []
        previous = stem
        for stage, channels in enumerate(stages):
            for i in range((depth - 4) // 6):
                blocks.append(PreActBlock(previous, channels, stride=2 if stage and not i else 1))
                previous = channels
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(previous)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W). Returns logits (N, classes)."""
        x = F.relu(self.bn(self.blocks(self.conv1(x))), inplace=True)
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits
