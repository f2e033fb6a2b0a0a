"""Small networks as float32 and int8 graphs, and what tests ask of a graph."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from oat_edge.conditioning import PAPER_KNOTS
from oat_edge.exporters.int8 import (
    TARGETS,
    prepare,
)
from oat_edge.exporters.to_onnx import export
from oat_edge.nn.fold import fold
from tests.conftest import make_network, spec_of

SHAPES = {"resnet8": (1, 8, 8), "wrn-10-1": (3, 16, 16), "mobilenet-v2": (3, 32, 32)}


every_target = pytest.mark.parametrize("target", TARGETS)


@functools.cache
def exported(arch: str, pinned: float | None, **changes: Any) -> Any:
    """The narrowest width as an fp32 ONNX model. Do not change it."""
    spec = spec_of(arch, SHAPES[arch], **changes)
    network = make_network(arch, SHAPES[arch], **changes)
    width = spec.widths[0]
    with tempfile.TemporaryDirectory() as folder:
        artifact = export(
            fold(network, width),
            spec,
            width=width,
            folder=Path(folder),
            checkpoint_sha256="0" * 64,
            pinned_lambda=pinned,
        )
        return onnx.load(Path(folder) / artifact.file)


@functools.cache
def prepared(arch: str, pinned: float | None, target: str) -> Any:
    return prepare(exported(arch, pinned), target=target)


def images(arch: str, num: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((num, *SHAPES[arch]), dtype=np.float32)


def run(model: Any, image: Any, lam: Any, names: Iterable[str] | None = None) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"image": image, "lambda": np.asarray(lam, dtype=np.float32)}
    return session.run(names, {value.name: feed[value.name] for value in session.get_inputs()})  # type: ignore[no-any-return]


def ranges_of(model: Any, names: tuple[str, ...], arch: str) -> dict[str, tuple[float, float]]:
    """Lowest and highest value over all knots."""
    if not names:
        return {}
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    for value in shown.graph.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    lam = np.repeat(PAPER_KNOTS, 8)
    found = run(shown, images(arch, len(lam), seed=1), lam, names)
    return {name: (float(v.min()), float(v.max())) for name, v in zip(names, found, strict=True)}


def nodes_of(model: Any, *kinds: str) -> list[Any]:
    return [node for node in model.graph.node if node.op_type in kinds]


def constants_of(model: Any) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
