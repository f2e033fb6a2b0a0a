"""int8 graphs: the prepared one is the same function, the quantised one is what it claims to be."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from oat_edge.conditioning import PAPER_KNOTS
from oat_edge.errors import BuildError, InputError
from oat_edge.exporters.int8 import (
    TARGETS,
    activations,
    insert_qdq,
    kept_by_default,
    prepare,
    quantizable,
)
from oat_edge.exporters.to_onnx import OPSET, export
from oat_edge.exporters.to_tensorrt import build_engine
from oat_edge.nn.fold import fold
from oat_edge.runtime.recipe import Recipe
from oat_edge.runtime.trt_api import load
from tests.conftest import make_network, spec_of

SHAPES = {"resnet8": (1, 8, 8), "wrn-10-1": (3, 16, 16), "mobilenet-v2": (3, 32, 32)}
KINDS = [
    ("resnet8", None),
    ("resnet8", 1.0),
    ("wrn-10-1", None),
    ("wrn-10-1", 0.0),
    pytest.param("mobilenet-v2", None, marks=pytest.mark.slow),
]
every_kind = pytest.mark.parametrize(("arch", "pinned"), KINDS)
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


@functools.cache
def quantised(arch: str, pinned: float | None, target: str, keep: frozenset[str]) -> Any:
    model = prepared(arch, pinned, target)
    names = activations(model, target=target, keep=keep)
    return insert_qdq(model, ranges_of(model, names, arch), target=target, keep=keep)


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


@settings(max_examples=5)
@given(
    lam=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6),
    arch=st.sampled_from(["resnet8", "wrn-10-1"]),
    target=st.sampled_from(TARGETS),
    seed=st.integers(0, 99),
    pull=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_prepared_is_the_same_function_whatever_the_table(lam, arch, target, seed, pull):
    """Scales that are zero, negative, or change sign between knots, as training may make them."""
    original = onnx.ModelProto()
    original.CopyFrom(exported(arch, None))
    table = next(tensor for tensor in original.graph.initializer if tensor.name == "table")
    values = numpy_helper.to_array(table).copy()
    generator = np.random.default_rng(seed)
    values += pull * generator.normal(size=values.shape).astype(np.float32)
    values[:, generator.random(values.shape[1]) < 0.1] = 0
    table.CopyFrom(numpy_helper.from_array(values, "table"))
    rewritten = prepare(original, target=target)
    image = images(arch, len(lam), seed)
    # What lies inside counts too: logits may be large differences of larger numbers.
    size = 1 + max(np.abs(v).max() for v in run(original, image, lam))
    (expected,) = run(original, image, lam)
    (got,) = run(rewritten, image, lam)
    np.testing.assert_allclose(got, expected, atol=2e-4 * size, rtol=0)


@every_target
def test_a_channel_that_one_block_ignores_stays_precise_for_the_others(target):
    """Sums of several convolutions are read by several norms; 8 bits must do for all of these."""
    original = onnx.ModelProto()
    original.CopyFrom(exported("wrn-10-1", None))
    table = next(tensor for tensor in original.graph.initializer if tensor.name == "table")
    values = numpy_helper.to_array(table).copy()
    scales, shifts = np.split(values, 2, axis=1)  # views
    ignored = np.random.default_rng(0).random(scales.shape[1]) < 0.2
    scales[:, ignored] *= 1e-5
    shifts[:, ignored] = np.abs(shifts[:, ignored]) + 0.5
    table.CopyFrom(numpy_helper.from_array(values, "table"))
    model = prepare(original, target=target)
    names = activations(model, target=target)
    keep = kept_by_default(model, target=target)
    int8 = insert_qdq(model, ranges_of(model, names, "wrn-10-1"), target=target, keep=keep)
    image, lam = images("wrn-10-1", 16, seed=3), np.full(16, 0.4)
    (expected,), (got,) = (run(one, image, lam) for one in (original, int8))
    assert np.sqrt(np.mean((got - expected) ** 2)) / expected.std() < 0.02


def test_a_dedicated_network_is_prepared_too():
    original = exported("resnet8", None, lambdas=(1.0,))
    image = images("resnet8", 3)
    (expected,) = run(original, image, np.ones(3))
    for target in TARGETS:
        (got,) = run(prepare(original, target=target), image, np.ones(3))
        np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


def test_no_shift_of_a_folded_layer_reaches_above_its_relu():
    """What the ReLU behind a convolution removes, the affine's own would have removed."""
    model = prepared("resnet8", None, "cpu")
    placed = [node for node in nodes_of(model, "Relu") if node.name.startswith("relu_")]
    assert placed
    readers = {name: node for node in model.graph.node for name in node.input}
    constants = constants_of(model)
    split = nodes_of(model, "Split")[0]
    ends = np.cumsum(constants[split.input[1]])
    table = constants[nodes_of(model, "MatMul")[0].input[1]]
    columns = dict(zip(split.output, np.split(table, ends[:-1], axis=1), strict=True))
    for relu in placed:
        mul = readers[readers[readers[relu.output[0]].output[0]].output[0]]
        add = readers[mul.output[0]]
        scale = next(columns[name] for name in mul.input if name in columns)
        shift = next(columns[name] for name in add.input if name in columns)
        assert (scale >= 0).all() and (shift <= 1e-5).all()
        assert np.abs(scale).max() <= 1 + 1e-6


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


def test_nothing_is_written_into_what_is_given():
    original = exported("resnet8", None)
    content = original.SerializeToString()
    model = prepare(original, target="cpu")
    assert original.SerializeToString() == content
    content = model.SerializeToString()
    names = activations(model, target="cpu")
    first = insert_qdq(model, ranges_of(model, names, "resnet8"), target="cpu")
    assert model.SerializeToString() == content
    again = insert_qdq(model, ranges_of(model, names, "resnet8"), target="cpu")
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(
        deterministic=True
    )


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
