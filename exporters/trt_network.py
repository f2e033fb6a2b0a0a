"""What TensorRT's parser made of an ONNX file: errors, interface, and types of convolutions."""

from __future__ import annotations

from collections import Counter
from typing import Any

from oat_edge.errors import BuildError
from oat_edge.exporters.build_session import one_line
from oat_edge.runtime.trt_layers import data_type, onnx_names

OUTPUT = "logits"


def check_interface(network: Any, api: Any) -> None:
    """Inputs and output are those of the contract, float32 with a free batch; else `BuildError`."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    names = [tensor.name for tensor in inputs], [tensor.name for tensor in outputs]
    had = [", ".join(found) or "none" for found in names]
    remedy = "build from a file that `oat-edge export` wrote"
    if sorted(names[0]) not in (["image"], ["image", "lambda"]) or names[1] != [OUTPUT]:
        raise BuildError(
            f"the ONNX file has inputs: {had[0]}, outputs: {had[1]}; "
            f"expected image and lambda (none if it is pinned), and {OUTPUT}; {remedy}"
        )
    for tensor in (*inputs, *outputs):
        batch, *rest = tuple(tensor.shape) or (0,)
        rank = {"image": 4, "lambda": 1, OUTPUT: 2}[tensor.name]
        if tensor.dtype != api.DataType.FLOAT or len(rest) != rank - 1:
            got = f"{tensor.dtype.name} {tuple(tensor.shape)}"
            raise BuildError(f"{tensor.name} is {got}: expected FLOAT of {rank} axes; {remedy}")
        if batch != -1:
            raise BuildError(
                f"{tensor.name} has a fixed batch of {batch}: expected a dynamic one, or the "
                f"engine would be wrong for others; {remedy}"
            )
        if tensor.name == "image" and -1 in rest:
            raise BuildError(f"image is {tuple(tensor.shape)}: expected (-1, C, H, W); {remedy}")


def convolutions_of(network: Any, api: Any) -> tuple[dict[str, int], set[str]]:
    """How many convolutions of a parsed network are in each type, and their ONNX nodes."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    quantized = {
        layer.get_output(0).name: data_type(layer.get_input(0).dtype.name)
        for layer in layers
        if layer.type == api.LayerType.DEQUANTIZE
    }
    kinds = (api.LayerType.CONVOLUTION, api.LayerType.DECONVOLUTION)
    counts: Counter[str] = Counter()
    nodes: set[str] = set()
    for layer in layers:
        if layer.type in kinds:
            read = [layer.get_input(i) for i in range(layer.num_inputs)]
            # Data and weights behind dequantisation: the product is of what they were before.
            types = {quantized.get(tensor.name) for tensor in read[:2] if tensor is not None}
            (kind,) = types if len(types) == 1 and layer.num_inputs > 1 else (None,)
            counts[kind or data_type(layer.get_output(0).dtype.name)] += 1
            nodes |= {layer.name, *onnx_names(getattr(layer, "metadata", ""))}
    return dict(counts), nodes


def parser_errors(parser: Any) -> list[str]:
    """One line for each error of a parser, with its node."""
    errors = []
    for error in (parser.get_error(i) for i in range(parser.num_errors)):
        node, kind = error.node_name(), error.node_operator()
        where = f"{kind or 'node'} {node}: " if node or kind else ""
        errors.append(one_line(f"{where}{error.desc()}"))
    return errors
