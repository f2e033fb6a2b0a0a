"""int8 graphs: the prepared one is the same function, the quantised one is what it claims to be."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from oat_edge.conditioning import PAPER_KNOTS
from oat_edge.errors import BuildError, InputError
from oat_edge.exporters.int8 import (
    activations,
    insert_qdq,
    kept_by_default,
    prepare,
    quantizable,
)
from oat_edge.exporters.to_onnx import OPSET
from oat_edge.exporters.to_tensorrt import build_engine
from oat_edge.runtime.recipe import Recipe
from oat_edge.runtime.trt_api import load
from tests.exporters.int8_networks import (
    constants_of,
    every_target,
    exported,
    images,
    nodes_of,
    prepared,
    ranges_of,
    run,
)

KINDS = [
    ("resnet8", None),
    ("resnet8", 1.0),
    ("wrn-10-1", None),
    ("wrn-10-1", 0.0),
    pytest.param("mobilenet-v2", None, marks=pytest.mark.slow),
]


every_kind = pytest.mark.parametrize(("arch", "pinned"), KINDS)


@functools.cache
def quantised(arch: str, pinned: float | None, target: str, keep: frozenset[str]) -> Any:
    model = prepared(arch, pinned, target)
    names = activations(model, target=target, keep=keep)
    return insert_qdq(model, ranges_of(model, names, arch), target=target, keep=keep)


def upstream(model: Any, names: Iterable[str]) -> list[Any]:
    """All nodes that these tensors come from."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, Any] = {}
    waiting = list(names)
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.name not in found:
            found[node.name] = node
            waiting += node.input
    return list(found.values())


def interface(model: Any) -> Any:
    return (
        [value.SerializeToString() for value in (*model.graph.input, *model.graph.output)],
        {entry.key: entry.value for entry in model.metadata_props},
        [(entry.domain, entry.version) for entry in model.opset_import],
    )


@every_target
@every_kind
def test_prepared_is_the_same_function(arch, pinned, target):
    original, rewritten = exported(arch, pinned), prepared(arch, pinned, target)
    assert interface(rewritten) == interface(original)
    for num in (1, 5):
        lam = np.resize((0.0, 0.37, 1.0, 0.03, 0.1), num)
        image = images(arch, num)
        (expected,) = run(original, image, lam)
        (got,) = run(rewritten, image, lam)
        np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


@every_target
@every_kind
def test_quantised_keeps_the_contract_of_the_graph(arch, pinned, target):
    model = quantised(arch, pinned, target, frozenset())
    assert interface(model) == interface(exported(arch, pinned))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    before = len(exported(arch, pinned).SerializeToString())
    weights = sum(v.size for v in constants_of(exported(arch, pinned)).values() if v.ndim == 4)
    if weights > 50_000:  # else names outweigh numbers
        assert len(model.SerializeToString()) < 0.75 * before


@every_target
@every_kind
def test_logits_stay_close_at_every_knot(arch, pinned, target):
    model = quantised(arch, pinned, target, frozenset())
    image = images(arch, 24, seed=2)
    for lam in PAPER_KNOTS if pinned is None else (pinned,):
        (expected,) = run(exported(arch, pinned), image, np.full(24, lam))
        (got,) = run(model, image, np.full(24, lam))
        error = np.sqrt(np.mean((got - expected) ** 2)) / expected.std()
        assert 0 < error < 0.06, f"λ={lam}: {error:.3f}"


@every_target
@every_kind
def test_layers_are_int8_per_channel_and_no_others(arch, pinned, target):
    model = quantised(arch, pinned, target, frozenset())
    layers = quantizable(prepared(arch, pinned, target))
    constants = constants_of(model)
    made_by = {name: node for node in model.graph.node for name in node.output}
    found = [node for node in nodes_of(model, "Conv", "Gemm") if node.name in layers]
    assert len(found) == len(layers)
    for node in found:
        activation, weight = (made_by[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert constants[weight.input[0]].dtype == np.int8
        assert constants[weight.input[1]].shape == (constants[weight.input[0]].shape[0],)
        assert not constants[weight.input[2]].any()
        kind = np.uint8 if target == "cpu" else np.int8
        assert constants[activation.input[2]].dtype == kind
    # One pair per rounded tensor; weights and the CPU's biases come as integers.
    rounded = len(activations(prepared(arch, pinned, target), target=target))
    assert len(nodes_of(model, "QuantizeLinear")) == rounded
    biases = sum(len(node.input) > 2 for node in found) if target == "cpu" else 0
    assert len(nodes_of(model, "DequantizeLinear")) == rounded + len(layers) + biases


@every_target
@pytest.mark.parametrize("arch", ["resnet8", "wrn-10-1"])
def test_the_path_of_lambda_stays_float32(arch, target):
    model = quantised(arch, None, target, frozenset())
    split = nodes_of(model, "Split")[0]
    path = [node.op_type for node in upstream(model, split.output)]
    assert "MatMul" in path and not {"QuantizeLinear", "DequantizeLinear"}.intersection(path)
    readers = [node for node in model.graph.node if set(node.input) & set(split.output)]
    assert len(readers) == len(split.output)
    assert {node.op_type for node in readers} == {"Mul", "Add"}
    matmul = nodes_of(model, "MatMul")[0]
    assert constants_of(model)[matmul.input[1]].dtype == np.float32


@every_target
@pytest.mark.parametrize("pinned", [None, 1.0])
def test_kept_layers_and_only_they_stay_float32(target, pinned):
    layers = quantizable(prepared("resnet8", pinned, target))
    keep = frozenset({layers[0], layers[3], layers[-1]})
    model = quantised("resnet8", pinned, target, keep)
    constants = constants_of(model)
    single = {
        node.name
        for node in nodes_of(model, "Conv", "Gemm")
        if node.name in layers and node.input[1] in constants
    }
    assert single == keep
    assert all(
        constants[n.input[1]].dtype == np.float32 for n in model.graph.node if n.name in keep
    )
    everything = quantised("resnet8", pinned, target, frozenset(layers))
    assert not nodes_of(everything, "QuantizeLinear", "DequantizeLinear")


def test_both_ends_are_kept_while_they_are_small():
    model = prepared("resnet8", None, "cpu")
    layers = quantizable(model)
    assert kept_by_default(model, target="cpu") == {layers[0], layers[-1]}
    assert kept_by_default(model, target="trt") == {layers[-1]}
    many = onnx.ModelProto()
    many.CopyFrom(model)
    head = next(node for node in many.graph.node if node.name == layers[-1])
    weight = next(tensor for tensor in many.graph.initializer if tensor.name == head.input[1])
    large = np.zeros((20_000, weight.dims[1]), dtype=np.float32)
    weight.CopyFrom(numpy_helper.from_array(large, weight.name))
    assert kept_by_default(many, target="cpu") == {layers[0]}


@pytest.mark.parametrize("arch", ["resnet8", "wrn-10-1"])
def test_onnx_runtime_runs_the_layers_in_int8_without_transposing_maps(arch, tmp_path):
    """The layout of the affines must meet ONNX Runtime's: only the image is transposed."""
    model = prepared(arch, None, "cpu")
    keep = frozenset(quantizable(model)[-1:])
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    content = quantised(arch, None, "cpu", keep).SerializeToString()
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(options.optimized_model_filepath)
    assert len(nodes_of(optimised, "QLinearConv")) == len(quantizable(model)) - len(keep)
    assert len(nodes_of(optimised, "Transpose")) <= 2


@pytest.mark.parametrize(
    ("arch", "pinned"), [("resnet8", None), ("resnet8", 1.0), ("wrn-10-1", None)]
)
def test_tensorrt_builds_the_file_that_is_made_for_it(arch, pinned):
    keep = kept_by_default(prepared(arch, pinned, "trt"), target="trt")
    model = quantised(arch, pinned, "trt", keep)
    constants = constants_of(model)
    for node in nodes_of(model, "QuantizeLinear", "DequantizeLinear"):
        zero_point = constants[node.input[2]]
        assert zero_point.dtype == np.int8 and not zero_point.any()
    recipe = Recipe(format="trt-rtx", precision="int8", batches=(1, 4, 8))
    built = build_engine(model.SerializeToString(), recipe, load(recipe.format))
    assert built.precision == "int8" and built.convolutions.keys() == {"int8"}
    assert sum(built.convolutions.values()) == len(nodes_of(model, "Conv"))


def test_what_cannot_be_done_is_said_in_one_line():
    model = prepared("resnet8", None, "cpu")
    names = activations(model, target="cpu")
    ranges = dict.fromkeys(names, (0.0, 1.0))
    cases: list[tuple[type[Exception], str, Any]] = [
        (InputError, "target is 'arm'", lambda: prepare(exported("resnet8", None), target="arm")),
        (InputError, f"no range for {names[1]}", lambda: insert(ranges, drop=names[1])),
        (InputError, "expected finite", lambda: insert({**ranges, names[0]: (0.0, np.inf)})),
        (InputError, "expected finite", lambda: insert({**ranges, names[0]: (1.0, 0.0)})),
        (InputError, "no layer nonsense", lambda: insert(ranges, keep=frozenset({"nonsense"}))),
        (
            BuildError,
            "not float32 throughout",
            lambda: prepare(quantised("resnet8", None, "cpu", frozenset()), target="cpu"),
        ),
        (BuildError, "no table", lambda: prepare(without_table(), target="cpu")),
        (BuildError, "nothing to quantise", lambda: prepare(onnx.ModelProto(), target="cpu")),
    ]

    def insert(ranges: Any, drop: str = "", keep: frozenset[str] = frozenset()) -> Any:
        left = {name: value for name, value in ranges.items() if name != drop}
        return insert_qdq(model, left, target="cpu", keep=keep)

    for kind, text, call in cases:
        with pytest.raises(kind, match=text) as error:
            call()
        assert "\n" not in str(error.value)


def without_table() -> Any:
    """An export whose scales come from somewhere else."""
    model = onnx.ModelProto()
    model.CopyFrom(exported("resnet8", None))
    matmul = nodes_of(model, "MatMul")[0]
    twice = onnx.helper.make_node("Add", [matmul.input[1], matmul.input[1]], ["doubled"], "double")
    matmul.input[1] = "doubled"
    model.graph.node.insert(0, twice)
    return model
