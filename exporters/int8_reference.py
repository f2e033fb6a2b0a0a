"""A reference λ folded into the convolutions, so that what is rounded is already normalised.

    K knots, C channels

A convolution's raw output has channels of very unlike size, and 8 bits per tensor would serve the
largest. Scale and shift of an affine differ between knots by little; what they have in common goes
into the convolution's weights (which have a scale per channel anyway), and the table keeps the
rest: x' = a·x + b, y = (s/a)·x' + (t - (s/a)·b). Equal in float arithmetic; after it |s/a| <= 1,
so that no λ magnifies the rounding of x'.

Where a ReLU follows the affine, b is chosen so that no shift is positive at any knot. What is
below zero in x' is then below zero in y, whatever λ: a ReLU is put at once behind the convolution,
and unsigned numbers need not cover what the second ReLU would remove.

In networks that normalise before the convolution, several convolutions add up to what affines
read; they share one a, and b is zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from oat_edge.exporters.int8_affines import Affine, Float, Graph, Table, write

# A channel whose scale is below this part of the layer's largest does no more than its shift.
DEAD = 1e-6
# Of several readers, one that uses a channel less than this part of its largest does not count.
FAINT = 1e-2
# With less than this part of its largest scale at some knot, a channel's zero lies too far out.
SMALLEST_RATIO = 0.2


def fold_reference(graph: Graph, table: Table | None, affines: list[Affine], *, relu: bool) -> int:
    """Fold in place; returns how many convolutions have changed.

    relu: put ReLUs behind convolutions, for unsigned activations.
    """
    changed: set[str] = set()
    for affine in affines:
        if affine.source in changed:
            continue
        stream = _stream(graph, affines, affine.source)
        if stream is None:
            continue
        tensors, convs = stream
        readers = [one for one in affines if one.source in tensors]
        a = _common_scale(readers)
        b = np.zeros(a.shape)
        single = len(convs) == len(readers) == 1
        if single:
            ratio = _divide(affine.scale, a)
            above = _only_positive_matters(graph, affine) and _zeros_align(ratio)
            b = _shift(ratio, affine.shift, align=relu and above)
        for conv in convs:
            _scale_conv(graph, conv, a, b)
        for one in readers:
            one.scale = _divide(one.scale, a)
            one.shift = one.shift - one.scale * b
            write(graph, table, one)
        if single and relu and above:
            _put_relu(graph, affine)
        changed |= tensors
    return sum(graph.made_by[name].op_type == "Conv" for name in changed)


def _stream(graph: Graph, affines: list[Affine], source: str) -> tuple[set[str], list[Any]] | None:
    """What must be scaled together with `source`: tensors, and the convolutions that feed them.

    None if anything but affines and convolutions has to do with them.
    """
    own = {node.name for affine in affines for node in (affine.mul, affine.add)}
    tensors: set[str] = set()
    convs = []
    waiting = [source]
    while waiting:
        name = waiting.pop()
        if name in tensors:
            continue
        tensors.add(name)
        maker = graph.made_by.get(name)
        if maker is None or name in graph.outputs:
            return None
        if maker.op_type == "Conv" and graph.value(maker.input[1]) is not None:
            convs.append(maker)
        elif maker.op_type == "Add" and maker.name not in own:
            waiting += maker.input
        else:
            return None
        for reader in graph.readers.get(name, []):
            if reader.op_type == "Add" and reader.name not in own:
                waiting.append(reader.output[0])
            elif reader.name not in own:
                return None
    return tensors, convs


def _common_scale(readers: list[Affine]) -> Float:
    """a, (C,): the largest scale over the knots; over several readers, their geometric mean."""
    largest = np.stack([np.abs(one.scale).max(axis=0) for one in readers])
    if len(readers) > 1:
        # Else a channel that one of them hardly uses would be too small to be rounded for the rest.
        largest = np.maximum(largest, FAINT * largest.max(axis=1, keepdims=True))
    floor = DEAD * largest.max()
    dead = (largest <= floor).any(axis=0)
    size = np.exp(np.log(np.where(dead, 1.0, largest)).mean(axis=0))
    if len(readers) > 1:
        return np.where(dead, 1.0, size)
    scale = readers[0].scale
    peak = np.take_along_axis(scale, np.abs(scale).argmax(axis=0)[None], axis=0)[0]
    return np.where(dead, 0.0, size * np.sign(peak))


def _divide(scale: Float, a: Float) -> Float:
    """s/a; zero where a is."""
    return np.where(a == 0, 0.0, scale / np.where(a == 0, 1.0, a))


def _zeros_align(ratio: Float) -> bool:
    """Whether every channel's y grows with its x' at every knot, or does not depend on it."""
    return bool(((ratio >= SMALLEST_RATIO) | (ratio == 0).all(axis=0)).all())


def _shift(ratio: Float, shift: Float, *, align: bool) -> Float:
    """b, (C,)."""
    lives = (ratio != 0).any(axis=0)
    if align:
        return np.where(lives, (shift / np.where(lives, ratio, 1.0)).max(axis=0), 0.0)
    # Least squares over the knots of what is left for the table.
    weight = (ratio**2).sum(axis=0)
    return np.where(lives, (ratio * shift).sum(axis=0) / np.where(lives, weight, 1.0), 0.0)


def _only_positive_matters(graph: Graph, affine: Affine) -> bool:
    reader = graph.only_reader(affine.output, "Relu", "Clip")
    if reader is None:
        return False
    if reader.op_type == "Relu":
        return True
    low = graph.value(reader.input[1]) if len(reader.input) > 1 else None
    return low is not None and float(low) >= 0


def _scale_conv(graph: Graph, conv: Any, a: Float, b: Float) -> None:
    """conv(x) becomes a·conv(x) + b."""
    weight = graph.value(conv.input[1]).astype(np.float64)
    biased = len(conv.input) > 2 and conv.input[2] != ""
    bias = graph.value(conv.input[2]) if biased else np.zeros(len(weight))
    name = conv.output[0]
    del conv.input[2:]
    scaled = weight * a.reshape(-1, *(1,) * (weight.ndim - 1))
    conv.input[1] = graph.set_constant(f"{name}_weight", scaled.astype(np.float32))
    if biased or b.any():
        shifted = (bias * a + b).astype(np.float32)
        conv.input.append(graph.set_constant(f"{name}_bias", shifted))


def _put_relu(graph: Graph, affine: Affine) -> None:
    from onnx import helper

    output = f"{affine.source}_positive"
    relu = helper.make_node("Relu", [affine.source], [output], name=f"relu_{affine.source}")
    place = list(affine.mul.input).index(affine.source)
    affine.mul.input[place] = affine.source = output
    nodes = list(graph.proto.node)
    graph.proto.node.insert(nodes.index(affine.mul), relu)
    graph.look()
