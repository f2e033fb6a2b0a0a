"""What the layers of a built engine compute in, by the library's own account.

Two sources: the engine inspector's JSON (needs a GPU) and what the builder of TensorRT-RTX logs,
which needs none. Names of layers and fields differ between versions; both are read into `Layer`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oat_edge.errors import BuildError, FallbackError

# How the libraries write data types -> our name. Anything else that is counted is "integer".
TYPES = {
    "float": "fp32", "float32": "fp32", "fp32": "fp32", "tf32": "tf32",
    "half": "fp16", "float16": "fp16", "fp16": "fp16",
    "bf16": "bf16", "bfloat16": "bf16", "fp8": "fp8", "e4m3": "fp8", "int8": "int8",
    "int4": "integer", "int32": "integer", "int64": "integer", "uint8": "integer",
    "bool": "integer",
}  # fmt: skip
# Of a layer's types the first of these decides: it computes in the widest.
WIDEST = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8")
# Kernels are named by input and output, then by the pair that they multiply and sum in, as in
# "…_f32f32_tf32f32_f32_…". Without that pair ("…_f16f16_f32_…", the sum alone) it says nothing.
KERNEL_TYPE = re.compile(
    r"_(?:bf16|e4m3|tf32|f32|f16|i8){2}_(bf16|e4m3|tf32|f32|f16|i8)(?=bf16|e4m3|tf32|f32|f16|i8|i32)"
)
KERNEL_TYPES = {
    "bf16": "bf16", "e4m3": "fp8", "tf32": "tf32", "f32": "fp32", "f16": "fp16", "i8": "int8",
}  # fmt: skip
CONVOLUTION = re.compile(r"conv|correlation", re.IGNORECASE)
# They may hold a convolution: 1x1 ones become matrix products, others are fused with what follows.
# "kgen" may not: generated kernels name the convolution whose input or weights they prepare.
MAY_CONVOLVE = re.compile(r"gemm|fusion|matmul|matrixmultiply|fullyconnected", re.IGNORECASE)
PREPARES = re.compile(r"cast|quantize", re.IGNORECASE)
# Whole parts of a network behind one name: what it computes in is not told.
OPAQUE = "Myelin"

LOGGED = "Layers:\n"
LOG_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>.*?), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName: (?P<tactic>.*?), StreamId: .*?, Metadata: (?P<metadata>.*)"
)
LOG_TENSOR = re.compile(r"Dimensions: \[([-\d, ]*)\][^{}]*?Data ?[Tt]ype: ([^,}]*)")
ONNX_NAME = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |[\x1e\x1f]|__|\s|$)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer of an engine. Types: "fp32", "tf32", "fp16", "bf16", "fp8", "int8", "integer" or
    "unknown".
    """

    name: str
    kind: str
    """The library's own word, e.g. "CaskConvolution", "correlation", "kgen"."""
    inputs: tuple[str, ...] = ()
    """Types of the inputs, the data first."""
    outputs: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    """Types of the constants, the largest (the weights) first."""
    tactic: str = ""
    """Name of the kernel, where one is chosen already."""
    onnx_names: tuple[str, ...] = ()
    """Nodes of the ONNX file that it comes from, or prepares data for."""

    @property
    def computes_in(self) -> str:
        """Type of its products: by the kernel's name, else the wider of data and weights."""
        if self.kind == OPAQUE:
            return "unknown"
        if match := KERNEL_TYPE.search(self.tactic):
            return KERNEL_TYPES[match[1]]
        types = {*self.inputs[:1], *self.constants[:1]}
        widest = next((name for name in WIDEST if name in types), "unknown")
        return "tf32" if widest == "fp32" and "tf32" in self.tactic.lower() else widest


def data_type(text: str) -> str:
    """Our name of a type in the library's words, e.g. of "Channel major FP16 format"."""
    words = re.findall(r"[a-z]+\d*[a-z]*\d*", text.lower())
    return next((TYPES[word] for word in words if word in TYPES), "unknown")


def layers_from_json(text: str) -> list[Layer]:
    """Read `IEngineInspector.get_engine_information` of TensorRT 10 or 11.

    Raises `BuildError` if it says nothing about types.
    """
    try:
        # Node names are parted by bare control characters: not strict. Keys differ in their case.
        content = json.loads(
            text,
            strict=False,
            object_pairs_hook=lambda pairs: {key.lower(): value for key, value in pairs},
        )
        found = list(content["layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(f"the engine inspector gave no list of layers ({error})") from None
    if not found or any(isinstance(layer, str) for layer in found):
        what = "only names of layers" if found else "no layers"
        raise BuildError(
            f"the engine tells {what}, not what they compute in: build it with profiling verbosity "
            "DETAILED (oat-edge export does)"
        )
    return [_json_layer(layer) for layer in found]


def layers_from_log(text: str) -> list[Layer]:
    """Read the message "Layers:" of TensorRT-RTX's builder (severity VERBOSE).

    Raises `BuildError` if it has another form.
    """
    if not text.startswith(LOGGED):
        raise BuildError(f"the builder's list of layers begins with {text[:20]!r}, not 'Layers:'")
    layers = []
    for line in text[len(LOGGED) :].split("\n"):
        if not line.startswith("Name: "):  # an empty line, then inputs and outputs of the engine
            break
        if (match := LOG_LINE.fullmatch(line)) is None:
            raise BuildError(f"the builder's list of layers has an unknown form: {line[:200]}")
        layers.append(
            Layer(
                name=match["name"],
                kind=match["kind"],
                inputs=tuple(kind for _, kind in _log_tensors(match["inputs"])),
                outputs=tuple(kind for _, kind in _log_tensors(match["outputs"])),
                constants=_largest_first(_log_tensors(match["constants"] or "")),
                tactic=match["tactic"],
                onnx_names=onnx_names(match["metadata"]),
            )
        )
    if not layers:
        raise BuildError("the builder's list of layers is empty")
    return layers


def onnx_names(metadata: str) -> tuple[str, ...]:
    """The nodes in a layer's metadata, "[ONNX Layer: a][ONNX Layer: b]"."""
    return tuple(ONNX_NAME.findall(metadata))


def count_convolutions(layers: Sequence[Layer], nodes: Collection[str] = ()) -> dict[str, int]:
    """How many convolutions compute in each type. Those merged into one layer count once.

    nodes: names of the ONNX file's convolutions; without them a node whose name holds "conv" is
    taken for one, which is what exporters write.
    """
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    sure = [layer for layer in layers if CONVOLUTION.search(layer.kind)]
    # A classic TensorRT runs a classifier as a convolution too.
    named = any(_convolved(layer, nodes) for layer in sure)
    for layer in sure:
        found = _convolved(layer, nodes)
        if found or not (named and layer.onnx_names):
            counts[layer.computes_in] += 1
            seen |= found
    rest = [a for a in layers if a.kind == OPAQUE or MAY_CONVOLVE.search(a.kind)]
    for layer in rest:
        # A fused layer behind a convolution may name it as well.
        if new := _convolved(layer, nodes) - seen:
            counts[layer.computes_in] += len(new) if layer.kind == OPAQUE else 1
            seen |= new
    return dict(counts)


def check_precision(
    counts: Mapping[str, int],
    requested: str,
    *,
    parsed: Mapping[str, int] | None = None,
    what: str,
) -> str:
    """The precision of an engine or network with these convolutions, if it is the requested one.

    parsed: the convolutions of the network that the engine was built from. what: names the thing
    in the message, e.g. "w0.50-fp16.engine".
    fp32 and fp16 hold for every convolution. In int8 layers may stay in a higher precision on
    purpose, as many as in `parsed`; where that is not known, fewer than half.
    Raises `FallbackError`.
    """
    total = sum(counts.values())
    wanted = counts.get(requested, 0)
    others = {kind: num for kind, num in counts.items() if kind != requested and num}
    if parsed is None:
        remedy = f"export it with --precision {requested}"
        excess = others if requested != "int8" or wanted <= total / 2 else {}
    else:
        remedy = "export with --precision fp32, or try another version of the library"
        more = {kind: num for kind, num in others.items() if num > parsed.get(kind, 0)}
        excess = more if requested == "int8" else others
        expected = sum(parsed.values())
        if total < expected / 2:  # some merge, not most
            raise FallbackError(
                f"{what} was asked for in {requested}, but shows {total} of {expected} "
                f"convolutions: what it computes in cannot be told; {remedy}"
            )
        if expected == total == 0:
            return requested
    if excess or not wanted:
        there = ", ".join(f"{num} in {kind}" for kind, num in sorted(counts.items()) if num)
        raise FallbackError(
            f"{what} was asked for in {requested}, but its convolutions compute otherwise "
            f"({there or 'it has none'}): {remedy}"
        )
    return requested


def _json_layer(layer: dict[str, Any]) -> Layer:
    constants = [_json_tensor(tensor) for tensor in layer.get("constants") or ()]
    for key in ("weights", "bias"):  # classic layers
        if isinstance(value := layer.get(key), dict):
            constants.append((int(value.get("count", 0)), data_type(str(value.get("type", "")))))
    kind, parameters = str(layer.get("layertype", "")), str(layer.get("parametertype", ""))
    if CONVOLUTION.search(parameters) and not CONVOLUTION.search(kind):
        kind = f"{kind} ({parameters})"
    return Layer(
        name=str(layer.get("name", "")),
        kind=kind,
        inputs=tuple(_json_tensor(tensor)[1] for tensor in layer.get("inputs") or ()),
        outputs=tuple(_json_tensor(tensor)[1] for tensor in layer.get("outputs") or ()),
        constants=_largest_first(constants),
        tactic=str(layer.get("tacticname", "")),
        onnx_names=onnx_names(str(layer.get("metadata", ""))),
    )


def _json_tensor(tensor: dict[str, Any]) -> tuple[int, str]:
    """Size and type. 10.x has one field for format and type, 11.x two."""
    text = tensor.get("datatype") or tensor.get("format/datatype") or tensor.get("format") or ""
    return math.prod(abs(dim) for dim in tensor.get("dimensions") or ()), data_type(str(text))


def _log_tensors(text: str) -> list[tuple[int, str]]:
    return [
        (math.prod(abs(int(dim)) for dim in dims.split(",") if dim.strip()), data_type(kind))
        for dims, kind in LOG_TENSOR.findall(text)
    ]


def _largest_first(tensors: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    return tuple(kind for _, kind in sorted(tensors, key=lambda tensor: -tensor[0]))


def _convolved(layer: Layer, nodes: Collection[str]) -> set[str]:
    """The convolutions among the nodes of a layer."""
    if nodes:
        return set(layer.onnx_names).intersection(nodes)
    return {
        name for name in layer.onnx_names if CONVOLUTION.search(name) and not PREPARES.search(name)
    }
