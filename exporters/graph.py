"""Rewrites of an ONNX graph: with λ pinned, the affines fold on into the convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


def fold_affine_into_conv(model: Any) -> int:
    """Conv -> Mul(constant) -> Add(constant) becomes one Conv, in place; returns how many.

    Only where nothing else reads what lies between, and the constants are per output channel,
    (1, C, 1, 1). This is the physical floor that the λ-input graph is measured against.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}

    def only_reader(name: str, kind: str) -> Any | None:
        found = readers.get(name, [])
        one = len(found) == 1 and found[0].op_type == kind and name not in outputs
        return found[0] if one else None

    folded = 0
    for conv in [node for node in graph.node if node.op_type == "Conv"]:
        weight = constants.get(conv.input[1])
        # Only images: (1, C, 1, 1) means something else beside a 1-D or 3-D convolution.
        if weight is None or weight.ndim != 4:
            continue
        biased = len(conv.input) > 2 and conv.input[2] != ""
        bias = constants.get(conv.input[2]) if biased else np.zeros(len(weight))
        if bias is None:
            continue
        if (multiply := only_reader(conv.output[0], "Mul")) is None:
            continue
        if (add := only_reader(multiply.output[0], "Add")) is None:
            continue
        scale = _per_channel(multiply, constants, len(weight))
        shift = _per_channel(add, constants, len(weight))
        if scale is None or shift is None:
            continue
        new_weight = (weight * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
        new_bias = (bias * scale + shift).astype(np.float32)
        names = [f"{conv.output[0]}_folded_weight", f"{conv.output[0]}_folded_bias"]
        for name, array in zip(names, (new_weight, new_bias), strict=True):
            graph.initializer.append(numpy_helper.from_array(array, name))
        conv.input[1:] = names
        conv.output[0] = add.output[0]
        graph.node.remove(multiply)
        graph.node.remove(add)
        folded += 1
    _drop_unused_constants(graph)
    return folded


def _per_channel(node: Any, constants: dict[str, Any], channels: int) -> Float32 | None:
    """The constant operand of a binary node as (C,), if it is one value per channel."""
    found = [constants[name] for name in node.input if name in constants]
    if len(found) != 1 or found[0].shape != (1, channels, 1, 1):
        return None
    return np.asarray(found[0].reshape(channels), dtype=np.float32)


def _drop_unused_constants(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    known = {name for node in graph.node for name in node.output}
    values = [value for value in graph.value_info if value.name in known]
    del graph.value_info[:]
    graph.value_info.extend(values)
