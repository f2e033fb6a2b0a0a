"""Other ways to put λ into the graph, side by side: why the shipped one is what it is.

One width of ResNet-34 at 32x32 in ONNX Runtime, one thread by default, relative to the pinned file:
- shipped: multiply and add per layer, as `export` writes them;
- unblocked: the same file without ONNX Runtime's blocked layout (ORT_ENABLE_EXTENDED);
- one-pass: scale and shift in one BatchNormalization over (1, N·C, HW);
- maps: scale and shift as full maps made by 1x1 convolutions of the hats; all stays blocked.

    python -m benchmarks.lambda_variants [--width 0.5] [--rounds 8] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from benchmarks.common import console, interleaved, save
from benchmarks.inference import export_plainly, make_files, randomised
from oat_edge.network_spec import NetworkSpec
from oat_edge.nn.fold import ChannelAffine, FoldedNetwork, fold
from oat_edge.nn.zoo import build_network


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    classes = tuple("0123456789")
    spec = NetworkSpec(arch="resnet34", class_names=classes, image_shape=(3, 32, 32), eps=8 / 255)
    network = randomised(build_network(spec))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(network, spec, arguments.width, Path(folder))
        maps, one_pass = Path(folder) / "maps.onnx", Path(folder) / "one-pass.onnx"
        export_plainly(Maps(fold(network, arguments.width)).eval(), spec, maps)
        onnx.save(one_pass_affines(onnx.load(files["lambda-input"])), one_pass)
        sessions = {
            "pinned": session(files["pinned"], arguments.threads),
            "shipped": session(files["lambda-input"], arguments.threads),
            "unblocked": session(files["lambda-input"], arguments.threads, blocked=False),
            "one-pass": session(one_pass, arguments.threads),
            "maps": session(maps, arguments.threads),
        }
        for batch in (1, 16):
            rows.append(measure(sessions, spec, batch, arguments.rounds))
            medians = rows[-1]["median_ms"]
            text = ", ".join(f"{k} {v / medians['pinned']:.2f}" for k, v in medians.items())
            console.print(f"width {arguments.width:g} batch {batch:>2}: {text}", markup=False)
    save("lambda_variants", {"arguments": vars(arguments), "rows": rows})


def measure(sessions: dict[str, Any], spec: NetworkSpec, batch: int, rounds: int) -> dict[str, Any]:
    """Medians of all variants, which must compute the same."""
    image = np.random.default_rng(0).random((batch, *spec.image_shape), dtype=np.float32)
    lam = np.resize(np.asarray(spec.lambdas, dtype=np.float32), batch)
    calls = {
        name: lambda s=one, p=name == "pinned": s.run(
            None, {"image": image} if p else {"image": image, "lambda": lam}
        )[0]
        for name, one in sessions.items()
    }
    expected = calls["shipped"]()
    for name in set(calls) - {"pinned"}:
        difference = np.abs(calls[name]() - expected).max()
        assert difference <= 1e-4 * np.abs(expected).max(), f"{name} computes something else"
    samples = interleaved(calls, rounds=rounds, calls=5)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    return {"batch": batch, "median_ms": medians, "samples_ms": samples}


def session(path: Path, threads: int, *, blocked: bool = True) -> Any:
    """An ONNX Runtime session on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not blocked:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Maps(nn.Module):
    """A folded network whose scales and shifts are maps of the size of the features."""

    def __init__(self, folded: FoldedNetwork) -> None:
        super().__init__()
        self.hat = folded.hat
        self.__dict__["shared"] = shared = {}
        half = sum(folded.channels)
        scales = folded.table[:, :half].split(folded.channels, dim=1)
        shifts = folded.table[:, half:].split(folded.channels, dim=1)
        for name, layer in list(folded.backbone.named_modules()):
            if isinstance(layer, ChannelAffine):
                affine = MapAffine(scales[layer.index], shifts[layer.index], shared)
                folded.backbone.set_submodule(name, affine)
        self.backbone = folded.backbone

    def forward(self, image: Tensor, lam: Tensor) -> Tensor:
        self.shared["hat"] = self.hat(lam)[:, :, None, None]
        return self.backbone(image)


class MapAffine(nn.Module):
    """scale(λ)·x + shift(λ), both by 1x1 convolutions of planes that hold the hats."""

    def __init__(self, scale_kc: Tensor, shift_kc: Tensor, shared: dict[str, Tensor]) -> None:
        super().__init__()
        self.__dict__["shared"] = shared
        self.scale, self.shift = _lookup(scale_kc), _lookup(shift_kc)

    def forward(self, x: Tensor) -> Tensor:
        planes = self.shared["hat"].expand(-1, -1, x.shape[2], x.shape[3])
        return self.shift(planes) + x * self.scale(planes)


def _lookup(table_kc: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(*table_kc.shape, 1, bias=False)
    conv.weight = nn.Parameter(table_kc.T[:, :, None, None].contiguous(), requires_grad=False)
    return conv


def one_pass_affines(model: Any) -> Any:
    """Every Conv -> Mul -> Add becomes Conv -> BatchNormalization over (1, N·C, HW), in place."""
    graph = model.graph
    convs = {node.output[0] for node in graph.node if node.op_type == "Conv"}
    reader = {name: node for node in graph.node for name in node.input}
    nodes, dropped = [], set()
    for node in graph.node:
        if node.op_type == "Mul" and node.input[0] in convs:
            add = reader[node.output[0]]
            dropped.add(add.name)
            shift = next(name for name in add.input if name != node.output[0])
            nodes += _one_pass(node.name, node.input[0], node.input[1], shift, add.output[0])
        elif node.name not in dropped:
            nodes.append(node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    for name, value in {"axis_0": [0], "flat": [-1]}.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "one"))
    return model


def _one_pass(p: str, x: str, scale: str, shift: str, out: str) -> list[Any]:
    make = helper.make_node
    return [
        make("Shape", [x], [p + "shape"]),
        make("Flatten", [x], [p + "rows"], axis=2),
        make("Unsqueeze", [p + "rows", "axis_0"], [p + "x"]),
        make("Reshape", [scale, "flat"], [p + "scale"]),
        make("Reshape", [shift, "flat"], [p + "shift"]),
        make("Sub", [p + "scale", p + "scale"], [p + "mean"]),
        make("Sub", ["one", p + "mean"], [p + "var"]),
        make(
            "BatchNormalization",
            [p + "x", p + "scale", p + "shift", p + "mean", p + "var"],
            [p + "y"],
            epsilon=0.0,
        ),
        make("Reshape", [p + "y", p + "shape"], [out]),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
