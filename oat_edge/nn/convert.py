"""Any CNN becomes an OATS network: its layers are swapped, its forward stays as it is.

Conv2d -> SlimmableConv2d, Linear -> SlimmableLinear, BatchNorm2d -> ConditionalBatchNorm2d.
Dry runs at every width check that channels fit; what cannot be converted is refused by name.
"""

from __future__ import annotations

import copy
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from oat_edge.conditioning import check_knots
from oat_edge.errors import InputError
from oat_edge.network_spec import Conditioning, Encoding, Heads, check_conditioning, check_widths
from oat_edge.nn.condition import Condition
from oat_edge.nn.conditional_norm import ConditionalBatchNorm2d
from oat_edge.nn.film import FiLM, KnotTable, encode_knots
from oat_edge.nn.heads import WidthHeads
from oat_edge.nn.network import OATSNetwork
from oat_edge.nn.slimmable import SlimmableConv2d, SlimmableLinear

CONVERTIBLE = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
NORMS_REFUSED = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase)


def convert(
    net: nn.Module,
    *,
    widths: tuple[float, ...],
    lambdas: tuple[float, ...],
    image_shape: tuple[int, int, int],
    encoding: Encoding = "random",
    encoding_dim: int = 128,
    no_film: tuple[str, ...] = (),
    heads: Heads = "shared",
    conditioning: Conditioning = "film",
    generator: torch.Generator | None = None,
) -> OATSNetwork:
    """Give `net` both knobs; `net` itself is not changed and its weights are kept.

    net maps (N, C, H, W) in [0, 1] to logits (N, classes). no_film: name patterns of batch norms
    without FiLM (the paper leaves out those of shortcuts); they are still dual and per width.
    With a single branch λ would not reach them, so there it means nothing. heads, conditioning: see
    `NetworkSpec`.
    Raises `InputError` naming the layer that cannot be converted and why.
    """
    check_widths(widths)
    knots = check_knots(lambdas)
    check_conditioning(conditioning, knots, encoding)
    single = conditioning == "single-bn"
    generator = generator or torch.Generator().manual_seed(0)
    backbone = copy.deepcopy(net)
    _refuse_unknown(backbone)
    head, num_classes = _find_head(backbone, image_shape)
    condition = Condition()
    kind: Encoding = encoding if conditioning == "film" else "onehot"
    encodings = encode_knots(kind, knots, encoding_dim, generator)
    # A dedicated network has one λ: there is nothing for FiLM to tell apart.
    num_film = 0
    head_name = next(name for name, module in backbone.named_modules() if module is head)
    for name, module in list(backbone.named_modules()):
        layer: nn.Module
        if isinstance(module, nn.Conv2d):
            layer = SlimmableConv2d.convert(module, condition, widths, head=module is head)
        elif isinstance(module, nn.Linear):
            layer = SlimmableLinear.convert(module, condition, widths, head=module is head)
        elif isinstance(module, nn.BatchNorm2d):
            left_out = any(fnmatch(name, pattern) for pattern in no_film)
            film: FiLM | KnotTable | None
            if len(knots) == 1 or (left_out and not single):
                film = None
            elif conditioning == "film":
                film = FiLM(encodings.shape[1], module.num_features)
            else:
                film = KnotTable(len(knots), module.num_features)
            layer = ConditionalBatchNorm2d(
                module, condition, widths, knots, film=film, film_index=num_film, single=single
            )
            num_film += film is not None
        else:
            continue
        if not name:
            raise InputError("the network is a single layer: expected a CNN of several")
        backbone.set_submodule(name, layer)
    network = OATSNetwork(
        backbone,
        condition,
        widths=widths,
        knots=knots,
        encodings=encodings,
        conditioning=conditioning,
    )
    if not network.norms():
        raise InputError("the network has no BatchNorm2d: λ could not reach it")
    _check_every_width(network, image_shape, num_classes)
    if heads == "per-width":
        _give_each_width_its_head(network, head_name)
    return network


def _refuse_unknown(net: nn.Module) -> None:
    names: dict[nn.Module, str] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, CONVERTIBLE) and names.setdefault(module, name) != name:
            raise InputError(
                f"layer '{name}' is '{names[module]}' under a second name: give each place a "
                "layer of its own before converting"
            )
    for name, module in net.named_modules():
        if type(module) in CONVERTIBLE:
            if isinstance(module, nn.BatchNorm2d) and not (
                module.affine and module.track_running_stats
            ):
                raise InputError(
                    f"layer '{name}' is a BatchNorm2d without running statistics or affine "
                    "parameters: it cannot be folded; build it with both"
                )
            continue
        kind = type(module).__name__
        if isinstance(module, CONVERTIBLE):
            raise InputError(
                f"layer '{name}' is {kind}, a subclass with a forward of its own: replace it "
                "with the plain torch layer before converting"
            )
        if isinstance(module, NORMS_REFUSED):
            raise InputError(
                f"layer '{name}' is {kind}: only BatchNorm2d can carry λ and be folded; "
                "replace it with BatchNorm2d before converting"
            )
        if list(module.parameters(recurse=False)):
            raise InputError(
                f"layer '{name}' is {kind}, whose parameters cannot be sliced to a width: "
                "Conv2d, Linear and BatchNorm2d can be converted"
            )


def _find_head(net: nn.Module, image_shape: tuple[int, int, int]) -> tuple[nn.Module, int]:
    """The layer that makes the logits, the last Conv2d or Linear called, and their number."""
    called: list[nn.Module] = []

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        called.append(module)

    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        logits = _dry_run(net, image_shape)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"the network does not take images {image_shape} ({error})") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not called:
        shape = getattr(logits, "shape", type(logits).__name__)
        raise InputError(f"the network returns {shape}: expected logits of shape (N, classes)")
    return called[-1], logits.shape[1]


def _give_each_width_its_head(network: OATSNetwork, name: str) -> None:
    """Only now, when the dry runs have shown how many channels reach the head at each width."""
    head = network.backbone.get_submodule(name)
    assert isinstance(head, (SlimmableConv2d, SlimmableLinear))
    network.backbone.set_submodule(name, WidthHeads(head, network.condition))


def _check_every_width(
    network: OATSNetwork, image_shape: tuple[int, int, int], num_classes: int
) -> None:
    def check(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, ConditionalBatchNorm2d)
        index = network.condition.width_index
        norm = module.branch(adversarial=network.knots[-1] > 0, width_index=index)
        if args[0].shape[1] != norm.num_features:
            name = next(n for n, m in network.norms() if m is module)
            raise InputError(
                f"layer '{name}' gets {args[0].shape[1]} channels at width "
                f"{network.widths[index]:g} and has {norm.num_features}: concatenated channels "
                "cannot be sliced"
            )

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, (SlimmableConv2d, SlimmableLinear))
        channels = args[0].shape[1 if isinstance(module, SlimmableConv2d) else -1]
        module.in_widths = (*module.in_widths[: network.condition.width_index], channels)

    hooks = [norm.register_forward_pre_hook(check) for _, norm in network.norms()]
    for module in network.backbone.modules():
        if isinstance(module, (SlimmableConv2d, SlimmableLinear)):
            module.in_widths = ()
            hooks.append(module.register_forward_pre_hook(note))
    was_training = network.training
    network.eval()
    try:
        for width in network.widths:
            lam = torch.full((2,), network.knots[-1])
            try:
                shape = _dry_run(network, image_shape, lam, width).shape
                # A view with a fixed size may run and merge images without an error.
                if tuple(shape) != (2, num_classes):
                    raise RuntimeError(f"2 images gave logits of shape {tuple(shape)}")
            except InputError:
                raise
            except (RuntimeError, ValueError) as error:
                raise InputError(
                    f"the network does not run at width {width:g} ({error}): is a number of "
                    "channels written into its forward?"
                ) from error
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()


def _dry_run(net: nn.Module, image_shape: tuple[int, int, int], *condition: Any) -> Any:
    was_training = net.training
    net.eval()  # batch norm of a 1x1 map cannot run in training mode, and nothing must change
    try:
        with torch.no_grad():
            return net(torch.zeros(2, *image_shape), *condition)
    finally:
        net.train(was_training)
