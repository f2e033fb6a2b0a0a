"""Fold one width into a plain narrow network: the one idea that makes everything fast.

    N batch, K knots, C channels of one layer, S sum of C over all layers, H/W pixels

In the folded network every batch norm + FiLM is a lookup. One (N,K)@(K,2S) product gives all
layers' scales and shifts; each layer is then one multiply-add. No FiLM weights, no second batch
norm and no slicing are left. The exporter, the training attack and every evaluation use it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from oat_edge.nn.condition import HatWeights
from oat_edge.nn.conditional_norm import ConditionalBatchNorm2d
from oat_edge.nn.heads import WidthHeads
from oat_edge.nn.network import OATSNetwork
from oat_edge.nn.slimmable import SlimmableConv2d, SlimmableLinear
from oat_edge.nn.spread import spread, spread_pays


class Affines:
    """The scales and shifts of one forward pass, shared by the layers; not in the module tree."""

    __slots__ = ("scales", "shifts", "spread")

    def __init__(self) -> None:
        self.scales: tuple[Tensor, ...] = ()
        self.shifts: tuple[Tensor, ...] = ()
        self.spread: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def use(
        self,
        scales: tuple[Tensor, ...],
        shifts: tuple[Tensor, ...],
        spread: dict[int, tuple[Tensor, Tensor]],
    ) -> Iterator[None]:
        """Lend them to the layers. spread: by layer, kept by the caller for passes at one λ."""
        self.scales, self.shifts, self.spread = scales, shifts, spread
        try:
            yield
        finally:
            self.scales, self.shifts, self.spread = (), (), {}

    def of(self, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of layer `index`, laid out for its input x (N, C, H, W)."""
        if not spread_pays(x):
            return self.scales[index], self.shifts[index]
        if index not in self.spread or self.spread[index][0].shape[3] != x.shape[3]:
            self.spread[index] = spread(self.scales[index], x), spread(self.shifts[index], x)
        return self.spread[index]


class ChannelAffine(nn.Module):
    """y = scale·x + shift with layer `index` of the shared affines, each (N or 1, C, 1, 1)."""

    affines: Affines

    def __init__(self, affines: Affines, index: int) -> None:
        super().__init__()
        self.__dict__["affines"] = affines
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W)."""
        scale, shift = self.affines.of(self.index, x)
        if torch.compiler.is_exporting():
            return x * scale + shift  # addcmul exports with a multiplication by one
        return torch.addcmul(shift, x, scale)


class FoldedNetwork(nn.Module):
    """One width as a plain network; λ is an input. Parameters do not require gradients."""

    table: Tensor
    """(K, 2S): at each knot the scales of all layers, then their shifts."""
    affines: Affines

    def __init__(
        self,
        backbone: nn.Module,
        affines: Affines,
        hat: HatWeights,
        channels: list[int],
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.__dict__["affines"] = affines
        self.compute_dtype = compute_dtype
        self.backbone = backbone
        self.knots = hat.knots
        self.channels = channels
        self.hat = hat
        self.register_buffer("table", torch.zeros(len(hat.knots), 2 * sum(channels)))
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Tensor, lam: Tensor) -> Tensor:
        """Logits.  image: (N, C, H, W) in [0, 1]; lam: (N,) in [0, 1], one λ per sample."""
        return self.at(lam)(image)

    def at(self, lam: Tensor) -> Callable[[Tensor], Tensor]:
        """Fix λ (N,): a function from images to logits, for many passes at the same λ."""
        scales, shifts = self.affines_at(lam)
        if self.compute_dtype is not None:
            scales = tuple(scale.to(self.compute_dtype) for scale in scales)
            shifts = tuple(shift.to(self.compute_dtype) for shift in shifts)
        laid_out: dict[int, tuple[Tensor, Tensor]] = {}

        def logits(image: Tensor) -> Tensor:
            with self.affines.use(scales, shifts, laid_out):
                return self.run(image)

        return logits

    def run(self, image: Tensor) -> Tensor:
        """The backbone with the affines that are in use; logits in the image's own dtype."""
        if self.compute_dtype is None:
            out: Tensor = self.backbone(image)
            return out
        # Weights and affines are cast already: all this casts is the normalised image.
        with torch.autocast(image.device.type, self.compute_dtype):
            return self.backbone(image).to(image.dtype)  # type: ignore[no-any-return]

    def compile_run(self) -> None:
        """Hand `run` to torch.compile; on CUDA its kernels, backward too, become CUDA graphs.

        The first passes then take minutes, and every new batch size some more.
        """
        mode = "reduce-overhead" if self.table.is_cuda else None
        self.__dict__["run"] = torch.compile(self.run, mode=mode)

    def affines_at(self, lam: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Scales and shifts of every layer at λ (N,), each (N, C, 1, 1)."""
        both = (self.hat(lam) @ self.table)[:, :, None, None]
        parts = torch.split(both, self.channels * 2, dim=1)
        return parts[: len(self.channels)], parts[len(self.channels) :]


class PinnedNetwork(nn.Module):
    """A folded network at one λ: the affines are constants, ready to fold into convolutions."""

    affines: Affines

    def __init__(self, folded: FoldedNetwork, lam: float) -> None:
        super().__init__()
        self.__dict__["affines"] = folded.affines
        self.backbone = folded.backbone
        self.num_layers = len(folded.channels)
        affines = folded.affines_at(torch.tensor([lam], dtype=torch.float32))
        for index, (scale, shift) in enumerate(zip(*affines, strict=True)):
            # Contiguous: a view would drag the whole table into every constant of the graph.
            self.register_buffer(f"scale_{index}", scale.clone())
            self.register_buffer(f"shift_{index}", shift.clone())
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Logits.  image: (N, C, H, W) in [0, 1]."""
        layers = range(self.num_layers)
        scales = tuple(self.get_buffer(f"scale_{i}") for i in layers)
        shifts = tuple(self.get_buffer(f"shift_{i}") for i in layers)
        with self.affines.use(scales, shifts, {}):
            logits: Tensor = self.backbone(image)
        return logits


def fold(
    network: OATSNetwork, width: float, *, compute_dtype: torch.dtype | None = None
) -> FoldedNetwork:
    """The plain network of one width, with its own copy of the weights.

    compute_dtype: such as bfloat16, for the weights, the affines and all activations; images,
    λ, tables and logits keep the network's own dtype. None: so does everything.
    """
    index = network.width_index(width)
    backbone = copy.deepcopy(network.backbone)
    affines = Affines()
    channels: list[int] = []
    for name, module in list(backbone.named_modules()):
        if isinstance(module, (SlimmableConv2d, SlimmableLinear)):
            backbone.set_submodule(name, module.plain(index))
        elif isinstance(module, WidthHeads):
            backbone.set_submodule(name, module.heads[index])
        elif isinstance(module, ConditionalBatchNorm2d):
            backbone.set_submodule(name, ChannelAffine(affines, len(channels)))
            norm = module.branch(adversarial=network.knots[-1] > 0, width_index=index)
            channels.append(norm.num_features)
    folded = FoldedNetwork(backbone, affines, copy.deepcopy(network.hat), channels, compute_dtype)
    # Same device, dtype and memory layout as the network it comes from.
    folded.to(network.encodings.device, network.encodings.dtype)
    if compute_dtype is not None:
        for module in backbone.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(compute_dtype)  # cast here and in refold, not in every pass
    if _is_channels_last(network):
        folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    refold(folded, network, width)
    return folded


@torch.no_grad()
def refold(
    folded: FoldedNetwork,
    network: OATSNetwork,
    width: float,
    *,
    film: list[tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Copy the network's present weights and tables into `folded`, in place.

    film: `network.film_tables()` where the caller has them already.
    """
    index = network.width_index(width)
    network.condition.film = network.film_tables() if film is None else film
    scales, shifts = [], []
    for name, module in network.backbone.named_modules():
        if isinstance(module, ConditionalBatchNorm2d):
            scale, shift = module.affine_tables(index)
            scales.append(scale)
            shifts.append(shift)
        elif isinstance(module, (SlimmableConv2d, SlimmableLinear)):
            plain = folded.backbone.get_submodule(name)
            assert isinstance(plain, (nn.Conv2d, nn.Linear))
            out, per_group = plain.weight.shape[:2]
            plain.weight.copy_(module.weight[:out, :per_group])
            if plain.bias is not None:
                assert module.bias is not None
                plain.bias.copy_(module.bias[:out])
        elif isinstance(module, WidthHeads):
            folded.backbone.get_submodule(name).load_state_dict(module.heads[index].state_dict())
    network.condition.film = []
    folded.table.copy_(torch.cat([*scales, *shifts], dim=1))
    own = dict(folded.backbone.named_buffers())
    for name, buffer in network.backbone.named_buffers():
        if name in own:  # such as Normalize's mean and std
            own[name].copy_(buffer)


def _is_channels_last(network: OATSNetwork) -> bool:
    return any(
        p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in network.parameters()
    )
