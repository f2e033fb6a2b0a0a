"""How many kernels does λ as an input cost an engine?  TensorRT-RTX tells without a GPU.

Its builder lists what the engine will run. ResNet-34 at 32x32 in half precision, λ as an input
against λ pinned; then two convolutions with every form of the λ-affine that was thought of, to
see which of them is fused into the convolution. Kernels are no times: those need a GPU.

    python -m benchmarks.fusion [--arch resnet34]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import console, save, small_image_spec
from benchmarks.inference import randomised
from oat_edge.exporters.to_onnx import OPSET, export
from oat_edge.exporters.to_tensorrt import build_engine
from oat_edge.nn.fold import fold
from oat_edge.nn.zoo import build_network
from oat_edge.require import require
from oat_edge.runtime.recipe import Recipe
from oat_edge.runtime.trt_api import load
from oat_edge.runtime.trt_layers import Layer

WIDTHS = (0.5, 1.0)
CHANNELS, SIZE = 64, 32
# Of a plan, what is no kernel: waiting for another stream, arithmetic of shapes on the host.
NO_KERNEL = ("signal", "wait", "shape_call")

# The λ-affine of one layer, from convolution `c` to output `y`; s and t are (N, C, 1, 1).
FORMS: dict[str, list[tuple[str, list[str], str]]] = {
    "constant (λ pinned)": [("Relu", ["c"], "y")],
    "scale and shift, as exported": [
        ("Mul", ["c", "s"], "m"),
        ("Add", ["m", "t"], "a"),
        ("Relu", ["a"], "y"),
    ],
    "shift alone": [("Add", ["c", "t"], "a"), ("Relu", ["a"], "y")],
    "scale alone": [("Mul", ["c", "s"], "m"), ("Relu", ["m"], "y")],
    "shift spread over the map": [
        ("Shape", ["image"], "size"),
        ("Expand", ["t", "size"], "map"),
        ("Add", ["c", "map"], "a"),
        ("Relu", ["a"], "y"),
    ],
}


def main() -> int:
    """Build, count, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet34")
    arguments = parser.parse_args()
    networks = [count_network(arguments.arch, width) for width in WIDTHS]
    for row in networks:
        console.print(
            f"{row['arch']} width {row['width']:g}: λ pinned {row['pinned']} kernels, λ input "
            f"{row['lambda-input']} ({row['convolutions']} convolutions)",
            markup=False,
        )
    forms = {name: count_form(nodes) for name, nodes in FORMS.items()}
    for name, found in forms.items():
        fused = "fused into both" if found["fused"] else "kernels of its own"
        console.print(
            f"two convolutions, {name}: {found['kernels']} kernels, {fused}", markup=False
        )
    save(
        f"fusion-{arguments.arch}",
        {"library": load("trt-rtx").name, "networks": networks, "forms": forms},
    )
    return 0


def count_network(arch: str, width: float) -> dict[str, Any]:
    """Kernels of the λ-input engine and of the pinned one."""
    spec = small_image_spec(arch)
    folded = fold(randomised(build_network(spec)), width)
    row: dict[str, Any] = {"arch": arch, "width": width}
    with tempfile.TemporaryDirectory() as folder:
        for name, pinned in (("lambda-input", None), ("pinned", 1.0)):
            artifact = export(
                folded,
                spec,
                width=width,
                folder=Path(folder),
                checkpoint_sha256="0" * 64,
                precision="fp16",
                pinned_lambda=pinned,
            )
            content = (Path(folder) / artifact.file).read_bytes()
            layers, row["convolutions"] = layers_of(content)
            row[name] = len(layers)
            row[f"{name} kinds"] = dict(Counter(layer.kind for layer in layers))
    return row


def count_form(nodes: Sequence[tuple[str, list[str], str]]) -> dict[str, Any]:
    """Kernels of two convolutions, each with this affine, and whether it became part of them."""
    layers, _ = layers_of(two_convolutions(nodes))
    ends = {layer.name: layer.onnx_names for layer in layers if layer.kind == "correlation"}
    fused = all(any("Relu" in name for name in names) for names in ends.values())
    return {"kernels": len(layers), "fused": fused, "convolutions": ends}


def layers_of(content: bytes) -> tuple[list[Layer], int]:
    """Kernels of an engine in half precision, and how many convolutions its network has."""
    recipe = Recipe(format="trt-rtx", precision="fp16")
    built = build_engine(content, recipe, load(recipe.format))
    kernels = [layer for layer in built.layers if layer.kind not in NO_KERNEL]
    return kernels, sum(built.convolutions.values())


def two_convolutions(form: Sequence[tuple[str, list[str], str]]) -> bytes:
    """Image and λ to logits, through two 3x3 convolutions with the affine `form` behind each."""
    onnx = require("onnx", purpose="the benchmark")
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    constants: list[Any] = []

    def add(kind: str, inputs: list[str], output: str | list[str], **attributes: Any) -> None:
        outputs = [output] if isinstance(output, str) else output
        name = f"{kind}_{outputs[0]}"
        nodes.append(onnx.helper.make_node(kind, inputs, outputs, name=name, **attributes))

    def constant(name: str, values: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    add("Reshape", ["lambda", constant("column", np.array([-1, 1]))], "lam")
    table = rng.random((1, 4 * CHANNELS), dtype=np.float32)
    add("MatMul", ["lam", constant("table", table)], "affines")
    add("Cast", ["affines"], "affines_half", to=half)
    add("Unsqueeze", ["affines_half", constant("axes", np.array([2, 3]))], "affines_4d")
    sizes = constant("sizes", np.array([CHANNELS] * 4))
    add("Split", ["affines_4d", sizes], ["s1", "t1", "s2", "t2"], axis=1)
    add("Cast", ["image"], "y0", to=half)
    for layer in (1, 2):
        weight = rng.normal(0, 0.05, (CHANNELS, CHANNELS, 3, 3)).astype(np.float16)
        add("Conv", [f"y{layer - 1}", constant(f"w{layer}", weight)], f"c{layer}", pads=[1] * 4)
        for kind, inputs, output in form:
            named = [name if name == "image" else f"{name}{layer}" for name in inputs]
            add(kind, named, f"{output}{layer}")
    add("Cast", ["y2"], "features", to=single)
    add("ReduceMean", ["features", constant("map_axes", np.array([2, 3]))], "mean", keepdims=0)
    head = rng.random((CHANNELS, 10), dtype=np.float32)
    add("Gemm", ["mean", constant("head", head)], "logits")
    value: Callable[..., Any] = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "two_convolutions",
        [value("image", single, ["N", CHANNELS, SIZE, SIZE]), value("lambda", single, ["N"])],
        [value("logits", single, ["N", 10])],
        constants,
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


if __name__ == "__main__":
    sys.exit(main())
