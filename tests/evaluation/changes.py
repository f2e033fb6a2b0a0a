"""Files of a bundle with a defect, listed in the manifest as if they were right."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from oat_edge.bundle import Artifact, Bundle, add_artifacts
from oat_edge.files import sha256_file

Change = Callable[[onnx.ModelProto], None]


def with_file(bundle: Bundle, artifact: Artifact, model: onnx.ModelProto) -> Bundle:
    """The bundle with this model as the file of `artifact`, hashes and all."""
    path = bundle.path / artifact.file
    path.write_bytes(model.SerializeToString())
    return listed(bundle, dataclasses.replace(artifact, sha256=sha256_file(path)))


def listed(bundle: Bundle, artifact: Artifact) -> Bundle:
    """The bundle with this entry in its manifest."""
    return add_artifacts(
        bundle.path,
        [artifact],
        run=bundle.run,
        checkpoint_sha256=bundle.checkpoint_sha256,
        spec=bundle.spec,
    )


def find(bundle: Bundle, file: str) -> Artifact:
    (artifact,) = (one for one in bundle.artifacts if one.file == file)
    return artifact


def changed(bundle: Bundle, file: str, change: Change) -> Bundle:
    """The bundle after `change` was done to the graph of one file."""
    model = onnx.load(bundle.path / file)
    change(model)
    return with_file(bundle, find(bundle, file), model)


def in_half(bundle: Bundle, file: str, change: Change = lambda model: None) -> tuple[Bundle, str]:
    """The bundle with a half-precision version of `file` as well, and its name."""
    from oat_edge.exporters.half import to_half

    artifact = find(bundle, file)
    model = onnx.load(bundle.path / file)
    assert to_half(model) > 0
    change(model)
    name = file.replace("fp32", "fp16")
    half = dataclasses.replace(
        artifact, file=name, precision_requested="fp16", precision_observed="fp16", parity=None
    )
    return with_file(bundle, half, model), name


def edit(model: onnx.ModelProto) -> Iterator[tuple[str, np.ndarray]]:
    """Every weight, to be changed in place."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        yield tensor.name, array
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def one_weight(model: onnx.ModelProto) -> None:
    """One weight of the last layer is off by a hundredth."""
    done = 0
    for _, array in edit(model):
        if array.shape == (10,):
            array[7] += 0.01
            done += 1
    assert done == 1


def all_logits_higher(model: onnx.ModelProto) -> None:
    """All logits are 1 higher, and so in the same order."""
    done = 0
    for _, array in edit(model):
        if array.shape == (10,):
            array += 1.0
            done += 1
    assert done == 1


def other_classes(model: onnx.ModelProto) -> None:
    """The logits of the classes have changed places."""
    done = 0
    for _, array in edit(model):
        if array.shape[-1:] == (10,) or (array.ndim == 2 and len(array) == 10):
            axis = array.ndim - 1 if array.shape[-1] == 10 else 0
            array[:] = np.roll(array, 1, axis=axis)
            done += 1
    assert done >= 2


def first_lambda_for_all(model: onnx.ModelProto) -> None:
    """Every image of a batch gets the λ of the first one."""
    _put(model, "zero", np.array([0], dtype=np.int64))
    _put(model, "nothing", np.zeros(1, dtype=np.float32))
    _instead_of_lambda(
        model,
        helper.make_node("Gather", ["lambda", "zero"], ["first"]),
        helper.make_node("Mul", ["lambda", "nothing"], ["zeros"]),
        helper.make_node("Add", ["zeros", "first"], ["lambda_"]),
    )


def nearest_tenth(model: onnx.ModelProto) -> None:
    """Right at every one of the paper's knots; between them λ snaps to a neighbour."""
    _put(model, "ten", np.full(1, 10, dtype=np.float32))
    _instead_of_lambda(
        model,
        helper.make_node("Mul", ["lambda", "ten"], ["tenfold"]),
        helper.make_node("Round", ["tenfold"], ["rounded"]),
        helper.make_node("Div", ["rounded", "ten"], ["lambda_"]),
    )


def broken_at(lam: float, value: float) -> Change:
    """All logits of one λ are NaN or infinite."""

    def change(model: onnx.ModelProto) -> None:
        _put(model, "where", np.full(1, lam, dtype=np.float32))
        _put(model, "bad", np.full(1, value, dtype=np.float32))
        _put(model, "good", np.zeros(1, dtype=np.float32))
        _put(model, "column", np.array([-1, 1], dtype=np.int64))
        (made,) = (node for node in model.graph.node if "logits" in node.output)
        made.output[0] = "whole"
        model.graph.node.extend(
            [
                helper.make_node("Equal", ["lambda", "where"], ["hit"]),
                helper.make_node("Where", ["hit", "bad", "good"], ["added"]),
                helper.make_node("Reshape", ["added", "column"], ["added_column"]),
                helper.make_node("Add", ["whole", "added_column"], ["logits"]),
            ]
        )

    return change


def _put(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    model.graph.initializer.append(numpy_helper.from_array(array, name))


def _instead_of_lambda(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Put `nodes`, which make `lambda_`, between the input and all that reads it."""
    old = list(model.graph.node)
    reads = 0
    for node in old:
        for place, name in enumerate(node.input):
            if name == "lambda":
                node.input[place] = "lambda_"
                reads += 1
    assert reads
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *old])


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    """A bundle of one's own, to be changed."""
    return Bundle.open(shutil.copytree(bundle.path, folder / bundle.path.name))
