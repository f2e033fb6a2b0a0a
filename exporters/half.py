"""A float32 graph gets a half-precision body: what `fp16` means to a strongly typed builder.

The body is what works on feature maps, from the first convolution to the pooling behind the last
one. Normalisation, the λ path with its tables, and the classifier stay in float32: they cost next
to nothing and decide the logits' last digits. Inputs and outputs keep their types.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from oat_edge.errors import BuildError

CONVOLUTIONS = ("Conv", "ConvTranspose")
# The body ends at the first of these behind the last convolution.
HEAD = ("ReduceMean", "GlobalAveragePool", "AveragePool", "Flatten", "Gemm", "MatMul")
# They only move values: where all readers are half, one cast in front of them serves all.
MOVES = ("Split", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Expand", "Identity")
# They read any type and give integers.
MEASURES = ("Shape", "Size")
# (operator, place of the input) that is float32 whatever the others are.
ALWAYS_SINGLE = (("Resize", 2), ("Upsample", 1))
HALF_MAX = float(np.finfo(np.float16).max)


def to_half(model: Any) -> int:
    """Rewrite `model` (an ONNX ModelProto) in place; returns how many convolutions are half now.

    Raises `BuildError` for a weight beyond the range of half precision.
    """
    from onnx import TensorProto

    graph = model.graph
    floats = _float_tensors(model)
    body = _body(graph, floats)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    inside = {name for index in body for name in graph.node[index].output}
    results = {value.name for value in graph.output}
    nodes: list[Any] = []
    cast: dict[tuple[str, int], str] = {}
    taken = {*weights, *(name for node in graph.node for name in (*node.input, *node.output))}

    def new_name(name: str, suffix: str) -> str:
        found = f"{name}_{suffix}"
        while found in taken:
            found += "_"
        taken.add(found)
        return found

    def as_type(name: str, kind: int, suffix: str) -> str:
        """The tensor `name` in another type; made once, just before its first reader."""
        if (name, kind) not in cast:
            cast[name, kind] = new_name(name, suffix)
            if name in weights:
                graph.initializer.append(_half_weight(weights[name], cast[name, kind]))
            else:
                nodes.append(_cast(name, cast[name, kind], kind))
        return cast[name, kind]

    for index, node in enumerate(graph.node):
        for place, name in enumerate(node.input):
            if name not in floats or node.op_type in MEASURES:
                continue
            half = index in body and (node.op_type, place) not in ALWAYS_SINGLE
            if half and name not in inside:
                node.input[place] = as_type(name, TensorProto.FLOAT16, "half")
            elif not half and name in inside:
                node.input[place] = as_type(name, TensorProto.FLOAT, "float")
        nodes.append(node)
        if index in body:
            _keep_half(node)
            for place, name in enumerate(node.output):
                if name in results and name in floats:  # the contract's name goes to the cast
                    node.output[place] = cast[name, TensorProto.FLOAT16] = new_name(name, "half")
                    nodes.append(_cast(node.output[place], name, TensorProto.FLOAT))
                    inside.remove(name)
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_stale(graph)
    return sum(node.op_type in CONVOLUTIONS for node in nodes)


def _float_tensors(model: Any) -> set[str]:
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    single = onnx.TensorProto.FLOAT
    named = {value.name for value in values if value.type.tensor_type.elem_type == single}
    return named | {tensor.name for tensor in graph.initializer if tensor.data_type == single}


def _body(graph: Any, floats: set[str]) -> set[int]:
    """Indices of the nodes that compute in half precision."""
    made_by = {name: index for index, node in enumerate(graph.node) for name in node.output}
    readers: dict[int, list[int]] = {index: [] for index in range(len(graph.node))}
    for index, node in enumerate(graph.node):
        for name in node.input:
            if name in made_by:
                readers[made_by[name]].append(index)
    before: set[int] = set()  # nodes with a convolution behind them
    for index in reversed(range(len(graph.node))):
        if any(r in before or graph.node[r].op_type in CONVOLUTIONS for r in readers[index]):
            before.add(index)
    body: set[int] = set()
    for index, node in enumerate(graph.node):
        fed = any(name in floats and made_by.get(name) in body for name in node.input)
        ends = node.op_type in HEAD and index not in before
        if node.op_type in CONVOLUTIONS or (fed and not ends and node.op_type not in MEASURES):
            body.add(index)
    results = {value.name for value in graph.output}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        moves = node.op_type in MOVES and node.output[0] in floats
        shown = results.intersection(node.output) or not readers[index]
        if moves and not shown and body.issuperset(readers[index]):
            body.add(index)
    return body


def _half_weight(tensor: Any, name: str) -> Any:
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= HALF_MAX:
        raise BuildError(
            f"weight {tensor.name} reaches {largest:g}, half precision ends at {HALF_MAX:g}: "
            "export --precision fp32"
        )
    return numpy_helper.from_array(values.astype(np.float16), name)


def _cast(source: str, target: str, kind: int) -> Any:
    from onnx import helper

    return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind)


def _keep_half(node: Any) -> None:
    """A cast to float32 inside the body is one to its type."""
    from onnx import TensorProto

    for attribute in node.attribute if node.op_type == "Cast" else ():
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16


def _drop_stale(graph: Any) -> None:
    """Weights that nothing reads any more, and notes of types that have changed."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
