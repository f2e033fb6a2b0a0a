"""FiLM (Perez et al. 2018) as OAT conditions on λ: encodings of the knots and the layer's MLP.

K knots, D encoding length, C channels

`KnotTable` stands in its place where gamma and beta are learnt without an MLP.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oat_edge.network_spec import Encoding


def encode_knots(
    kind: Encoding, knots: tuple[float, ...], dim: int, generator: torch.Generator
) -> Tensor:
    """Encode each knot.  Returns (K, D) float32.

    "random": rows of a random orthogonal matrix, D = dim (OAT's default). "dct": rows of the
    orthonormal DCT-II matrix, D = dim. "onehot": D = K. "none": λ itself, D = 1.
    """
    if kind == "none":
        return torch.tensor(knots, dtype=torch.float32).unsqueeze(1)
    if kind == "onehot":
        return torch.eye(len(knots))
    if kind == "dct":
        row = torch.arange(len(knots), dtype=torch.float64).unsqueeze(1)
        column = torch.arange(dim, dtype=torch.float64)
        matrix = torch.cos(math.pi / dim * (column + 0.5) * row) * math.sqrt(2 / dim)
        matrix[0] /= math.sqrt(2)
        return matrix.float()
    gaussian = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    orthogonal: Tensor = torch.linalg.qr(gaussian).Q
    return orthogonal[: len(knots)].float()


class FiLM(nn.Module):
    """Encoding -> (gamma, beta), per channel of the full width; a narrower width takes the first.

    Linear-LeakyReLU-Linear with a hidden layer of 2C, LeakyReLU on both outputs (the authors'
    code). The last layer starts at gamma = 1, beta = 0, so that FiLM begins as the identity.
    """

    def __init__(self, encoding_dim: int, num_channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(encoding_dim, 2 * num_channels)
        self.out = nn.Linear(2 * num_channels, 2 * num_channels)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor([1.0, 0.0]).repeat_interleave(num_channels))

    def forward(self, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """encoding: (K, D). Returns gamma and beta, each (K, C)."""
        out = F.leaky_relu(self.out(F.leaky_relu(self.hidden(encoding))))
        gamma, beta = out.chunk(2, dim=1)
        return gamma, beta


class KnotTable(nn.Module):
    """FiLM without the MLP: gamma and beta of every knot are parameters, (K, C) each.

    One linear map of one-hot encodings. Starts as the identity, as FiLM does.
    """

    def __init__(self, num_knots: int, num_channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(num_knots, num_channels))
        self.beta = nn.Parameter(torch.zeros(num_knots, num_channels))

    def forward(self, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """encoding: one-hot rows, (K, K). Returns gamma and beta, each (K, C)."""
        return encoding @ self.gamma, encoding @ self.beta
