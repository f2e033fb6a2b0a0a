"""A float32 graph becomes an int8 one: explicit QuantizeLinear and DequantizeLinear nodes.

    N batch, C channels

    prepared = prepare(model, target="cpu")
    ranges = ...                                  # of `activations(prepared, target="cpu")`
    int8 = insert_qdq(prepared, ranges, target="cpu")

The convolutions and the classifier of the image path compute in 8 bits, weights with a scale per
output channel. λ's tables, the affines that they feed, residual sums and pooling stay float32, and
so do the graph's inputs and outputs. Two targets, because the machines differ:

- "cpu": activations are unsigned and asymmetric, biases int32, what ONNX Runtime's kernels for
  x86 with VNNI want. Every layer has Q/DQ at both ends.
- "trt": activations are signed and symmetric, biases float32: NVIDIA's parsers refuse all else.
  Q/DQ stand in front of layers alone, so that TensorRT may fuse what follows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from oat_edge.errors import BuildError, InputError
from oat_edge.exporters.int8_affines import Graph, find_affines, find_table
from oat_edge.exporters.int8_layout import in_rows
from oat_edge.exporters.int8_reference import fold_reference
from oat_edge.require import require

TARGETS = ("cpu", "trt")
LAYERS = ("Conv", "Gemm")
QDQ = ("QuantizeLinear", "DequantizeLinear")
# Whose output is rounded, too. Logits never are: with 8 bits they would take half of all error.
ROUNDED = {"cpu": ("Conv",), "trt": ()}
# The layers at both ends stay float32 while they hold no more of the weights than this: it costs
# no time (benchmarks/int8.py), and the classifier's and the first convolution's errors are gone.
SMALL_END = 0.05
# Behind a layer, ONNX Runtime's quantiser makes these a matter of the range of what is rounded.
ACTIVATIONS = ("Relu", "Clip")


def prepare(model: Any, *, target: str) -> Any:
    """The same function in float32, written so that rounding costs little accuracy and time.

    model: ONNX ModelProto as `to_onnx.export` writes it in fp32. Returns a new one, with the same
    inputs, outputs and metadata. Raises `BuildError` for a graph that is not such.
    """
    _check_target(target)
    _check_float(model)
    model = _copy(model)
    graph = Graph(model.graph)
    _name_nodes(graph)
    _fold_division(graph)
    table = find_table(graph)
    affines = find_affines(graph, table)
    fold_reference(graph, table, affines, relu=target == "cpu")
    if target == "cpu" and affines:
        in_rows(graph, table, affines, _image_shapes(model))
    graph.drop_unused()
    return _checked(model)


def quantizable(model: Any) -> tuple[str, ...]:
    """Names of the layers of the image path that can compute in 8 bits, in order.

    They are the same in an exported model (where all its nodes have names) and a prepared one.
    """
    graph = Graph(model.graph)
    behind: set[str] = {"image"}  # tensors that depend on the image
    names = []
    for node in model.graph.node:
        if behind.isdisjoint(node.input):
            continue
        behind.update(node.output)
        if node.op_type in LAYERS and node.input[1] in graph.constants:
            names.append(node.name)
    if "" in names or len(set(names)) < len(names):
        raise BuildError("layers without a name of their own: run prepare first")
    return tuple(names)


def kept_by_default(model: Any, *, target: str) -> frozenset[str]:
    """Layers that are better left in float32: the classifier, and on a CPU the first convolution.

    In TensorRT a float32 convolution would be much slower than an int8 one.
    """
    _check_target(target)
    graph = Graph(model.graph)
    names = quantizable(model)
    layers = {node.name: node for node in model.graph.node if node.name in names}
    weights = {name: graph.value(node.input[1]).size for name, node in layers.items()}
    ends = {names[-1]} if layers[names[-1]].op_type == "Gemm" else set()
    if target == "cpu":
        ends.add(names[0])
    most = SMALL_END * sum(weights.values())
    return frozenset(name for name in ends if weights[name] <= most)


def activations(model: Any, *, target: str, keep: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Names of the tensors whose ranges `insert_qdq` needs, in order."""
    _check_target(target)
    graph = Graph(model.graph)
    layers = _layers(model, keep)
    wanted: dict[str, None] = {}
    for node in model.graph.node:
        if node.name in layers:
            wanted[node.input[0]] = None
            if node.op_type in ROUNDED[target]:
                wanted[(_activation(graph, node) or node).output[0]] = None
    return tuple(wanted)


def insert_qdq(
    model: Any,
    ranges: Mapping[str, tuple[float, float]],
    *,
    target: str,
    keep: frozenset[str] = frozenset(),
) -> Any:
    """Put QuantizeLinear and DequantizeLinear into a prepared model; returns a new one.

    ranges: lowest and highest value of each of `activations(model, target, keep)`. keep: layers
    (of `quantizable`) that stay float32. Raises `BuildError`; `InputError` for ranges or names.
    """
    tensors = activations(model, target=target, keep=keep)
    layers = _layers(model, keep)
    quantizer = require("onnxruntime.quantization.qdq_quantizer", purpose="int8 export")
    quantization = require("onnxruntime.quantization", purpose="int8 export")
    onnx = require("onnx", purpose="int8 export")
    calibrate = require("onnxruntime.quantization.calibrate", purpose="int8 export")
    method = calibrate.CalibrationMethod.MinMax
    data = {name: _range(name, ranges, calibrate) for name in tensors}
    symmetric = target == "trt"
    model = onnx.shape_inference.infer_shapes(_copy(model))
    graph = Graph(model.graph)
    for node in model.graph.node:
        rounded = node.name in layers and node.op_type in ROUNDED[target]
        follows = _activation(graph, node) if rounded else None
        if follows is not None:
            layers = layers | {follows.name}
            # The tensor between the two vanishes: the quantiser asks for its range all the same.
            data[node.output[0]] = data[follows.output[0]]
    kind = quantization.QuantType
    facts = list(model.metadata_props)
    producer = model.producer_name, model.producer_version
    if not layers:
        return _checked(model)
    inserting = quantizer.QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=kind.QInt8,
        activation_qType=kind.QInt8 if symmetric else kind.QUInt8,
        tensors_range=calibrate.TensorsData(method, data),
        nodes_to_quantize=sorted(layers),
        nodes_to_exclude=[],
        op_types_to_quantize=[*LAYERS, *ACTIVATIONS],
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": not symmetric,
            "OpTypesToExcludeOutputQuantization": sorted({*LAYERS} - {*ROUNDED[target]}),
        },
    )
    inserting.quantize_model()
    inserting.model.topological_sort()
    quantised = inserting.model.model
    quantised.producer_name, quantised.producer_version = producer
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(facts)
    del quantised.graph.value_info[:]
    return _checked(quantised)


def _check_float(model: Any) -> None:
    """Raise `BuildError` unless layers in float32 read the image."""
    from onnx import TensorProto

    kinds = {tensor.data_type for tensor in model.graph.initializer}
    operators = {node.op_type for node in model.graph.node}
    if TensorProto.FLOAT16 in kinds or not operators.isdisjoint(QDQ):
        raise BuildError("the graph is not float32 throughout: quantise the fp32 file")
    graph = Graph(model.graph)
    if not any(op in operators for op in LAYERS) or "image" not in graph.readers:
        raise BuildError("nothing to quantise: expected convolutions that read the input image")


def _check_target(target: str) -> None:
    if target not in TARGETS:
        raise InputError(f"target is '{target}': expected {' or '.join(TARGETS)}")


def _layers(model: Any, keep: frozenset[str]) -> frozenset[str]:
    names = frozenset(quantizable(model))
    if unknown := keep - names:
        raise InputError(f"no layer {', '.join(sorted(unknown))}: expected some of quantizable()")
    return names - keep


def _activation(graph: Graph, layer: Any) -> Any:
    """The ReLU or clip that alone reads a layer's output, or None."""
    return graph.only_reader(layer.output[0], *ACTIVATIONS)


def _range(name: str, ranges: Mapping[str, tuple[float, float]], calibrate: Any) -> Any:
    if name not in ranges:
        raise InputError(f"no range for {name}: calibrate the prepared model")
    low, high = ranges[name]
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise InputError(f"the range of {name} is {low:g} to {high:g}: expected finite, growing")
    return calibrate.TensorData(lowest=np.float32(low), highest=np.float32(high))


def _copy(model: Any) -> Any:
    return type(model).FromString(model.SerializeToString())


def _checked(model: Any) -> Any:
    onnx = require("onnx", purpose="int8 export")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BuildError(f"the rewritten graph is not valid ONNX: {reason}") from error
    return model


def _name_nodes(graph: Graph) -> None:
    """Every node has a name of its own."""
    taken: set[str] = set()
    for index, node in enumerate(graph.proto.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)


def _fold_division(graph: Graph) -> None:
    """Dividing the image by constants per channel: the first convolution's weights can do that."""
    for division in list(graph.proto.node):
        if division.op_type != "Div":
            continue
        conv = graph.only_reader(division.output[0], "Conv")
        by, weight = graph.value(division.input[1]), conv and graph.value(conv.input[1])
        if by is None or weight is None or by.ndim != 4 or by.shape[1:] != (weight.shape[1], 1, 1):
            continue
        conv.input[1] = graph.set_constant(f"{conv.output[0]}_divided", weight / by)
        conv.input[0] = division.input[0]
        graph.proto.node.remove(division)
        graph.look()


def _image_shapes(model: Any) -> dict[str, tuple[int, int, int]]:
    """(C, H, W) of all tensors of the image path."""
    onnx = require("onnx", purpose="int8 export")
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {}
    for value in inferred.graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 4:
            shapes[value.name] = tuple(dim.dim_value for dim in dims[1:])
    return shapes
