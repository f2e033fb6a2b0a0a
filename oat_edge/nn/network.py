"""The network with both knobs: a converted backbone and the condition its layers read.

N batch, K knots, C channels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from oat_edge.errors import InputError
from oat_edge.nn.condition import HatWeights
from oat_edge.nn.spread import spread

if TYPE_CHECKING:
    from oat_edge.network_spec import Conditioning
    from oat_edge.nn.condition import Condition
    from oat_edge.nn.conditional_norm import ConditionalBatchNorm2d


class TrainPass(NamedTuple):
    """Images of one branch in a training step."""

    images: Tensor
    """(N, C, H, W) in [0, 1]."""
    hat: Tensor
    """(N, K) weights over the knots."""
    adversarial: bool
    """Whether they take the batch norm of λ > 0."""


class OATSNetwork(nn.Module):
    """A network made by `convert`. In eval mode it is a function of image, λ and width.

    Its attributes `widths` and `knots` are the settings of both knobs that were trained.
    """

    encodings: Tensor
    condition: Condition

    def __init__(
        self,
        backbone: nn.Module,
        condition: Condition,
        *,
        widths: tuple[float, ...],
        knots: tuple[float, ...],
        encodings: Tensor,
        conditioning: Conditioning = "film",
    ) -> None:
        super().__init__()
        self.__dict__["condition"] = condition
        self.backbone = backbone
        self.widths = widths
        self.knots = knots
        # In the state dict: a network whose encodings are lost is useless (facts, sec. 1.4).
        self.register_buffer("encodings", encodings)
        # One set of statistics: nothing to switch at λ = 0, so λ is continuous there too.
        self.single_branch = conditioning == "single-bn"
        self.hat = HatWeights(knots, through_zero=self.single_branch)
        self.train_dtype: torch.dtype | None = None
        """Of activations and weights inside `train_pass`, such as bfloat16; None: their own."""

    @property
    def branches(self) -> tuple[bool, ...]:
        """`adversarial` of every branch that there is; a single one counts as adversarial."""
        return (True,) if self.single_branch else tuple(sorted({lam > 0 for lam in self.knots}))

    def norms(self) -> list[tuple[str, ConditionalBatchNorm2d]]:
        """Every conditional batch norm with its name in the backbone."""
        from oat_edge.nn.conditional_norm import ConditionalBatchNorm2d

        named = self.backbone.named_modules()
        return [(name, m) for name, m in named if isinstance(m, ConditionalBatchNorm2d)]

    def film_tables(self) -> list[tuple[Tensor, Tensor]]:
        """(gamma, beta), each (K, C), of every FiLM layer: the MLPs run on the K knots only."""
        return [norm.film(self.encodings) for _, norm in self.norms() if norm.film is not None]

    def width_index(self, width: float) -> int:
        """Place of a trained width, else `InputError`."""
        if width not in self.widths:
            raise InputError(f"width is {width:g}: this network has {self.widths}")
        return self.widths.index(width)

    def forward(self, image: Tensor, lam: Tensor, width: float = 1.0) -> Tensor:
        """Logits.  image: (N, C, H, W) in [0, 1]; lam: (N,) in [0, 1]. Eval mode only."""
        assert not self.training, "training runs one branch at a time: see train_pass"
        return self._run(image, self.hat(lam), width, film=self.film_tables())

    def train_pass(
        self,
        image: Tensor,
        hat: Tensor,
        width: float,
        *,
        adversarial: bool,
        film: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Logits of a training pass in which every sample takes the same batch-norm branch.

        At `train_dtype`; batch statistics, FiLM's tables, parameters, their gradients and the
        logits returned keep their own dtype.
        """
        assert self.training, "train_pass updates batch statistics: call train() first"
        self.condition.adversarial = adversarial
        if self.train_dtype is None:
            return self._run(image, hat, width, film=film)
        with torch.autocast(image.device.type, self.train_dtype):
            logits = self._run(image, hat, width, film=film)
        return logits.to(image.dtype)

    def train_passes(
        self,
        passes: Sequence[TrainPass],
        width: float,
        *,
        film: list[tuple[Tensor, Tensor]],
    ) -> list[Tensor]:
        """Logits of the passes of one training step, in their order.

        With two branches one after the other, each with its own batch statistics (OAT.py). With a
        single one all together: what normalises in training is then the mixture that the running
        statistics hold afterwards.
        """
        if not self.single_branch:
            return [
                self.train_pass(p.images, p.hat, width, adversarial=p.adversarial, film=film)
                for p in passes
            ]
        images, hat = torch.cat([p.images for p in passes]), torch.cat([p.hat for p in passes])
        logits = self.train_pass(images, hat, width, adversarial=True, film=film)
        return list(torch.split(logits, [len(p.images) for p in passes]))

    def _run(
        self, image: Tensor, hat: Tensor, width: float, *, film: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        condition = self.condition
        condition.width_index = self.width_index(width)
        condition.hat, condition.film = hat, film
        try:
            logits: Tensor = self.backbone(image)
            return logits
        finally:
            condition.hat, condition.film = None, []  # keep no graph alive


class Normalize(nn.Module):
    """(x - mean) / std per image channel, inside the network so that ε is in pixel scale."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1).float())
        self.register_buffer("std", std.reshape(1, -1, 1, 1).float())

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W) in [0, 1]."""
        return (x - spread(self.mean, x)) / spread(self.std, x)
