"""A width that was not trained, added to a trained network.

Convolutions and FiLM are shared by all widths; only batch norms, and heads where every width has
its own, are kept per width. Those of the new width start as a blend of its trained neighbours'. The
statistics are far off (a channel's input is a sum over another number of channels);
`oat_edge.calib.bn_statistics` takes them anew.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch
from torch import nn

from oat_edge.errors import InputError
from oat_edge.network_spec import NetworkSpec
from oat_edge.nn.heads import WidthHeads
from oat_edge.nn.network import OATSNetwork
from oat_edge.nn.zoo import build_network

# Names of `ConditionalBatchNorm2d`'s module lists.
BRANCHES = ("clean", "adversarial", "single")


def trained_neighbours(spec: NetworkSpec, width: float) -> tuple[float, float]:
    """The trained widths next to an untrained one, else `InputError`."""
    have = ", ".join(f"{one:g}" for one in spec.widths)
    if width in spec.widths:
        raise InputError(f"width {width:g} is there already: this network has {have}")
    for below, above in pairwise(spec.trained_widths):
        if below < width < above:
            return below, above
    low, high = spec.trained_widths[0], spec.trained_widths[-1]
    where = f"between {low:g} and {high:g}" if low < high else "next to one that is the only one"
    raise InputError(
        f"width {width:g} has no trained width on either side: expected one {where}, "
        "or train it with `oat-edge train --widths`"
    )


@torch.no_grad()
def add_width(
    network: OATSNetwork, spec: NetworkSpec, width: float
) -> tuple[OATSNetwork, NetworkSpec]:
    """A copy that has `width` too, in eval mode, and its spec; all else is equal bit for bit."""
    below, above = trained_neighbours(spec, width)
    new_spec = dataclasses.replace(
        spec,
        widths=tuple(sorted((*spec.widths, width))),
        calibrated_widths=tuple(sorted((*spec.calibrated_widths, width))),
    )
    added = build_network(new_spec).to(network.encodings.device)
    prefixes = [f"backbone.{name}.{b}." for name, _ in network.norms() for b in BRANCHES]
    prefixes += [f"backbone.{name}." for name, _ in _heads(network)]
    shared = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if not name.startswith(tuple(prefixes))
    }
    missing, unexpected = added.load_state_dict(shared, strict=False)
    assert not unexpected and all(name.startswith(tuple(prefixes)) for name in missing)
    index, low, high = (new_spec.widths.index(width), *map(spec.widths.index, (below, above)))
    share = (width - below) / (above - below)
    for old, new in zip(_per_width(network), _per_width(added), strict=True):
        for old_index, one in enumerate(spec.widths):
            new[new_spec.widths.index(one)].load_state_dict(old[old_index].state_dict())
        _blend(new[index], old[low], old[high], share)
    _refuse_twin(added, index, (below, above))
    return added.eval(), new_spec


def _heads(network: OATSNetwork) -> list[tuple[str, WidthHeads]]:
    named = network.backbone.named_modules()
    return [(name, module) for name, module in named if isinstance(module, WidthHeads)]


def _per_width(network: OATSNetwork) -> list[list[nn.Module]]:
    """Every layer that each width has its own of, by width."""
    widths = range(len(network.widths))
    norms: list[list[nn.Module]] = [
        [norm.branch(adversarial=adversarial, width_index=i) for i in widths]
        for _, norm in network.norms()
        for adversarial in network.branches
    ]
    return [*norms, *(list(module.heads) for _, module in _heads(network))]


def _blend(layer: nn.Module, low: nn.Module, high: nn.Module, share: float) -> None:
    """A channel of both neighbours gets what lies `share` of the way up; others are `high`'s.

    The channels of a norm lie along its only axis, those that a head reads along its weight's
    second; a head's bias belongs to the classes, which all widths have.
    """
    states = low.state_dict(), high.state_dict()
    for name, value in layer.state_dict().items():
        narrow, wide = (state[name] for state in states)
        if not value.ndim:
            continue  # how many batches were seen
        axis = 1 if value.ndim > 1 else 0
        value.copy_(wide.narrow(axis, 0, value.shape[axis]))
        value.narrow(axis, 0, narrow.shape[axis]).lerp_(narrow, 1 - share)


def _refuse_twin(network: OATSNetwork, index: int, neighbours: tuple[float, float]) -> None:
    """Raise if rounding gives the new width just the channels of a neighbour."""

    def channels(width_index: int) -> list[int]:
        adversarial = network.knots[-1] > 0
        norms = [
            m.branch(adversarial=adversarial, width_index=width_index) for _, m in network.norms()
        ]
        return [norm.num_features for norm in norms]

    for width in neighbours:
        if channels(network.widths.index(width)) == channels(index):
            raise InputError(
                f"width {network.widths[index]:g} has the channels of width {width:g} in every "
                f"layer: use that one"
            )
