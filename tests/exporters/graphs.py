"""ONNX files that several tests look at: exported networks in every precision, and small graphs."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from oat_edge.calib.bn_statistics import average_statistics
from oat_edge.exporters.half import to_half
from oat_edge.exporters.to_onnx import export
from oat_edge.nn.fold import fold
from tests.conftest import make_network, spec_of

FLOAT = TensorProto.FLOAT
PINNED = 0.3


def image_shape(arch: str) -> tuple[int, int, int]:
    return (1, 8, 8) if arch == "resnet8" else (3, 32, 32)


@functools.cache
def _network(arch: str) -> Any:
    network = make_network(arch, image_shape(arch))
    if arch == "mobilenet-v2":
        generator = torch.Generator().manual_seed(0)
        _take_statistics(network, torch.rand(16, *image_shape(arch), generator=generator))
    return network


def _take_statistics(network: Any, images: torch.Tensor) -> None:
    """Of images: behind 50 layers with made-up statistics all images have the same logits."""
    hat = torch.eye(len(network.knots))
    clean = hat[:1].expand(len(images), -1)
    attacked = hat[1:].repeat(len(images), 1)[: len(images)]
    for width in network.widths:
        for hats, adversarial in ((clean, False), (attacked, True)):
            average_statistics(network, width, [(images, hats)], adversarial=adversarial)


def exported(arch: str, width: float = 0.5, precision: str = "fp32", pinned: bool = False) -> bytes:
    """The content of an exported file; int8 as ONNX Runtime's quantiser makes it for TensorRT."""
    return _exported(arch, width, precision, pinned)


@functools.cache
def _exported(arch: str, width: float, precision: str, pinned: bool) -> bytes:
    if precision == "fp32":
        with tempfile.TemporaryDirectory() as folder:
            artifact = export(
                fold(_network(arch), width),
                spec_of(arch, image_shape(arch)),
                width=width,
                folder=Path(folder),
                checkpoint_sha256="c" * 64,
                pinned_lambda=PINNED if pinned else None,
            )
            return (Path(folder) / artifact.file).read_bytes()
    content = _exported(arch, width, "fp32", pinned)
    return half(content) if precision == "fp16" else quantized(content)


def half(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    to_half(model)
    return bytes(model.SerializeToString())


def quantized(content: bytes, *, leave: Sequence[str] = ()) -> bytes:
    """With Q/DQ around every convolution and Gemm, but for the nodes `leave`."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[dict[str, Any]] = iter([feed(content, 4)])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(content)
        quantize_static(
            source,
            target,
            Batches(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["Conv", "Gemm"],
            nodes_to_exclude=list(leave),
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
            },
        )
        return target.read_bytes()


def feed(content: bytes, num: int) -> dict[str, np.ndarray]:
    """Inputs of a batch: random images, λ mixed."""
    rng = np.random.default_rng(num)
    values: dict[str, np.ndarray] = {}
    for value in onnx.load_from_string(content).graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
        values[value.name] = rng.random((num, *shape), dtype=np.float32)
    return values


def run(content: bytes, num: int = 8) -> np.ndarray:
    """The first output for `feed(content, num)`, in ONNX Runtime, as the graph says."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed(content, num))[0])


class Graph:
    """A small float32 graph that takes (N, 3, 8, 8) images."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(0)

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def constant(self, values: Any, name: str = "") -> str:
        name = name or f"constant{len(self.weights)}"
        self.weights[name] = np.asarray(values)
        return name

    def random(self, *shape: int) -> str:
        values = self.rng.normal(size=shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        return self.constant(values.astype(np.float32))

    def conv(self, source: str, channels: int, into: int, size: int = 1, name: str = "") -> str:
        weights = self.random(into, channels, size, size), self.random(into)
        return self.add("Conv", source, *weights, name=name, pads=[size // 2] * 4)

    def head(self, source: str, channels: int) -> str:
        """Mean over pixels, classifier of 10 classes."""
        axes = self.constant(np.array([2, 3], dtype=np.int64))
        mean = self.add("ReduceMean", source, axes, keepdims=0)
        return self.add("Gemm", mean, self.random(channels, 10), self.random(10), name="logits")

    def model(
        self,
        outputs: Sequence[tuple[str, Sequence[Any]]] = (("logits", ("batch", 10)),),
        batch: Any = "batch",
    ) -> Any:
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("image", FLOAT, [batch, 3, 8, 8])],
            [helper.make_tensor_value_info(name, FLOAT, list(shape)) for name, shape in outputs],
            [numpy_helper.from_array(values, name) for name, values in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model
