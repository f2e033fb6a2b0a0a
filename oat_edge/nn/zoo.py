"""The built-in architectures by name, and the OATS network that a spec describes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oat_edge.errors import InputError
from oat_edge.network_spec import NetworkSpec
from oat_edge.nn.convert import convert
from oat_edge.nn.mobilenet import MobileNetV2
from oat_edge.nn.network import Normalize, OATSNetwork
from oat_edge.nn.resnet import ResNet
from oat_edge.nn.slimmable import scaled_channels
from oat_edge.nn.wide_resnet import WideResNet


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build a plain network, and which of its batch norms go without FiLM."""

    build: Callable[[int, int], nn.Module]
    """(image channels, classes) -> network"""
    no_film: tuple[str, ...] = ()


def _resnet(
    num_blocks: tuple[int, ...],
    channels: tuple[int, ...],
    *,
    stem_stride: int = 1,
    width_mult: float = 1.0,
) -> Architecture:
    scaled = tuple(scaled_channels(count, width_mult) for count in channels)
    # OAT's code has FiLM after each main-path batch norm, not after the shortcut's.
    return Architecture(
        lambda c, k: ResNet(
            num_blocks, scaled, in_channels=c, num_classes=k, stem_stride=stem_stride
        ),
        no_film=("*.shortcut.*",),
    )


def _wide_resnet(depth: int, widen: int, *, stem_stride: int, width_mult: float) -> Architecture:
    return Architecture(
        lambda c, k: WideResNet(
            depth,
            widen,
            in_channels=c,
            num_classes=k,
            stem_stride=stem_stride,
            width_mult=width_mult,
        ),
        # The last batch norm has no FiLM in OAT's wide_resnet.py.
        no_film=("*net.bn",),
    )


# Blocks and channels of each stage.
RESNETS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    # He et al., sec. 4.2, n = 1, twice as wide: right for digits of 8x8 pixels.
    "resnet8": ((1, 1, 1), (32, 64, 128)),
    "resnet18": ((2, 2, 2, 2), (64, 128, 256, 512)),
    "resnet34": ((3, 4, 6, 3), (64, 128, 256, 512)),
}
ARCHITECTURES: dict[str, Architecture] = {
    **{name: _resnet(*stages) for name, stages in RESNETS.items()},
    "mobilenet-v2": Architecture(lambda c, k: MobileNetV2(in_channels=c, num_classes=k)),
}


def architecture(name: str) -> Architecture:
    """Look up "resnet34" or any "wrn-DEPTH-WIDEN"; `InputError` lists what there is.

    "resnet34-s2" and "wrn-10-4-s2" begin with a convolution of stride 2: about a quarter of the
    work, for images whose finest detail is not needed.
    "resnet34-x0.5" and "wrn-16-8-x0.5" are networks of their own with half the channels: what the
    width 0.5 of an OATS network of the plain name computes with, and nothing more. After an -s2.
    """
    if match := re.fullmatch(r"(.+?)(-s2)?(?:-x(0\.\d+))?", name):
        base, width_mult = match[1], float(match[3] or 1)
        stem_stride = 2 if match[2] else 1
        if width_mult > 0 and base in RESNETS:
            return _resnet(*RESNETS[base], stem_stride=stem_stride, width_mult=width_mult)
        if width_mult > 0 and (match := re.fullmatch(r"wrn-(\d{1,4})-(\d{1,3})", base)):
            depth, widen = map(int, match.groups())
            return _wide_resnet(depth, widen, stem_stride=stem_stride, width_mult=width_mult)
    if name not in ARCHITECTURES:
        have = ", ".join(ARCHITECTURES)
        raise InputError(
            f"architecture is '{name}': expected {have}, or wrn-D-K with D = 6n + 4 (a resnet or "
            "wrn may end in -s2 for a stem of stride 2, then in -x0.5 for half the channels)"
        )
    return ARCHITECTURES[name]


def build_network(
    spec: NetworkSpec,
    *,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> OATSNetwork:
    """The untrained OATS network of a spec.

    mean, std: (C,) of the training images in [0, 1], for the normalisation inside the network.
    generator: draws weights and encodings; None is seed 0.
    """
    arch = architecture(spec.arch)
    channels = spec.image_shape[0]
    generator = generator or torch.Generator().manual_seed(0)
    # Layers draw their first weights from torch's global generator: lend it our seed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        net = arch.build(channels, spec.num_classes)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        backbone = nn.Sequential()
        backbone.add_module(
            "normalize",
            Normalize(
                torch.zeros(channels) if mean is None else mean,
                torch.ones(channels) if std is None else std,
            ),
        )
        backbone.add_module("net", net)
        return convert(
            backbone,
            widths=spec.widths,
            lambdas=spec.lambdas,
            image_shape=spec.image_shape,
            encoding=spec.encoding,
            encoding_dim=spec.encoding_dim,
            no_film=arch.no_film,
            heads=spec.heads,
            conditioning=spec.conditioning,
            generator=generator,
        )
