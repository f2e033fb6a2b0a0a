from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from oat_edge.exporters.int8 import (
    TARGETS,
    activations,
    insert_qdq,
    kept_by_default,
    prepare,
)
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
