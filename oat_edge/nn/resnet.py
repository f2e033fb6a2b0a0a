"""ResNets for small images (He et al. 2016): a 3x3 stem without pooling, basic blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each followed by batch norm, around a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """num_blocks and channels per stage; every stage after the first halves the image."""

    def __init__(
        self,
        num_blocks: tuple[int, ...],
        channels: tuple[int, ...],
        *,
        in_channels: int,
        num_classes: int,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        blocks: list[nn.Module] = []
        previous = channels[0]
        for stage, (count, width) in enumerate(zip(num_blocks, channels, strict=True)):
            for i in range(count):
                blocks.append(BasicBlock(previous, width, stride=2 if stage and not i else 1))
                previous = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W). Returns logits (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        logits: Tensor = self.fc(self.pool(self.blocks(x)).flatten(1))
        return logits
