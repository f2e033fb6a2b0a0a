"""Averages of the weights along training: EMA and SWA.

The averaged network is what is validated, saved and exported; training itself does not see it.

Batch norm. An EMA follows the weights within a span over which the statistics hardly change, and
both branches' running statistics are moving averages themselves: they are averaged like the
weights, at no cost. SWA averages points that lie far apart on purpose, and the average of their
statistics is not the statistics of the average (Izmailov et al. 2018, sec. 3.2): they are taken
anew from training images, clean ones for the clean branch, clean and attacked ones for the other
(`oat_edge.calib.bn_statistics`).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from oat_edge.calib.bn_statistics import StatisticsConfig, estimate_statistics
from oat_edge.config import TrainConfig
from oat_edge.data.splits import permutation
from oat_edge.nn.network import OATSNetwork


class Average:
    """The average of a network's states so far; `network` is a network of its own."""

    def __init__(self, network: OATSNetwork, *, decay: float | None) -> None:
        """decay: of an EMA, per update; None weighs all updates alike (SWA)."""
        self.network: OATSNetwork = copy.deepcopy(network)
        self.network.eval()
        self.decay = decay
        self.count = 0

    @torch.no_grad()
    def update(self, network: OATSNetwork) -> None:
        """Take in the network's present weights and buffers."""
        new, count = network.state_dict(), self.count
        share = 1 / (count + 1)
        if self.decay is not None and count:
            # Early on a long memory would hold little but the random start: it grows with the
            # number of updates (TensorFlow's and timm's rule).
            share = 1 - min(self.decay, (1 + count) / (10 + count))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(new[name], share)
            else:
                value.copy_(new[name])
        self.count = count + 1

    def estimate_statistics(self, images: Tensor, labels: Tensor, config: TrainConfig) -> None:
        """Take the batch-norm statistics of every width anew, in place.

        images: (N, C, H, W) uint8 of the training split; labels: (N,), both on the device.
        """
        statistics = StatisticsConfig(batch_size=config.batch_size, seed=config.seed)
        chosen = permutation(len(images), (config.seed,))[: statistics.samples]
        index = torch.from_numpy(chosen).to(images.device)
        for width in self.network.widths:
            estimate_statistics(
                self.network, width, images[index], labels[index], config, statistics
            )
