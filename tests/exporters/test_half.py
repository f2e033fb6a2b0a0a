from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from oat_edge.errors import BuildError
from oat_edge.exporters.half import to_half
from tests.exporters.graphs import Graph, exported, half, run

SINGLE, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
ARCHITECTURES = [
    ("resnet8", False),
    ("resnet8", True),
    ("wrn-16-1", False),
    pytest.param("mobilenet-v2", False, marks=pytest.mark.slow),
    pytest.param("resnet34", False, marks=pytest.mark.slow),
    pytest.param("wrn-16-1", True, marks=pytest.mark.slow),
    pytest.param("mobilenet-v2", True, marks=pytest.mark.slow),
]


def types_of(model):
    """Element type of every tensor, by ONNX's own rules (strict: a contradiction raises)."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    return types | {value.name: value.type.tensor_type.elem_type for value in values}


def nodes_of(model, *kinds):
    return [node for node in model.graph.node if node.op_type in kinds]


def interface(model):
    values = (*model.graph.input, *model.graph.output)
    return [(value.name, value.type.SerializeToString()) for value in values]


def check_sound(model):
    """What holds of every rewritten graph."""
    onnx.checker.check_model(model, full_check=True)
    types = types_of(model)
    convolutions = nodes_of(model, "Conv", "ConvTranspose")
    for node in convolutions:
        assert {types[name] for name in (*node.input, *node.output) if name} == {HALF}
    casts = [(node.input[0], node.attribute[0].i) for node in nodes_of(model, "Cast")]
    assert len(casts) == len(set(casts)), "a tensor is cast twice"
    assert not {name for name, _ in casts} & {t.name for t in model.graph.initializer}
    made = [name for node in model.graph.node for name in node.output]
    assert len(made) == len(set(made))
    read = {name for node in model.graph.node for name in node.input}
    assert all(tensor.name in read for tensor in model.graph.initializer)
    # Notes on types may only say what is so.
    for value in model.graph.value_info:
        assert value.name in made and value.type.tensor_type.elem_type == types[value.name]
    return types, len(convolutions)


def close(content, other, bound):
    expected, got = run(content), run(other)
    assert got.dtype == np.float32 and got.shape == expected.shape
    difference = np.abs(got - expected).max() / np.abs(expected).max()
    assert 0 < difference < bound


@pytest.mark.parametrize("arch, pinned", ARCHITECTURES)
class TestExported:
    def test_the_body_is_half_and_nothing_else(self, arch, pinned):
        before = onnx.load_from_string(exported(arch, pinned=pinned))
        after = onnx.load_from_string(exported(arch, pinned=pinned))
        num = to_half(after)
        types, found = check_sound(after)
        assert num == found == len(nodes_of(before, "Conv"))
        assert interface(after) == interface(before)
        # λ's tables and the classifier: the products that are no convolutions.
        products = nodes_of(after, "Gemm", "MatMul")
        assert len(products) == (1 if pinned else 3)
        for node in products:
            assert {types[name] for name in (*node.input, *node.output)} == {SINGLE}

    def test_feature_maps_never_leave_the_body(self, arch, pinned):
        model = onnx.load_from_string(exported(arch, precision="fp16", pinned=pinned))
        casts = [(n.input[0], n.attribute[0].i) for n in nodes_of(model, "Cast")]
        to_single = [name for name, kind in casts if kind == SINGLE]
        to_half = [name for name, kind in casts if kind == HALF]
        (last,) = to_single
        (reader,) = [node for node in model.graph.node if f"{last}_float" in node.input]
        assert reader.op_type == "ReduceMean"
        # The image; scales and shifts of all layers as one tensor.
        assert len(to_half) == (1 if pinned else 2)

    def test_weights_are_the_rounded_ones(self, arch, pinned):
        before = onnx.load_from_string(exported(arch, pinned=pinned))
        after = onnx.load_from_string(exported(arch, precision="fp16", pinned=pinned))
        arrays = [
            {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
            for model in (before, after)
        ]
        for old, new in zip(nodes_of(before, "Conv"), nodes_of(after, "Conv"), strict=True):
            for old_name, new_name in zip(old.input[1:], new.input[1:], strict=True):
                expected = arrays[0][old_name].astype(np.float16)
                np.testing.assert_array_equal(arrays[1][new_name], expected)

    def test_logits_are_close_to_float32(self, arch, pinned):
        precise, rough = (exported(arch, precision=p, pinned=pinned) for p in ("fp32", "fp16"))
        assert len(rough) < 0.75 * len(precise)
        # 53 layers that were never trained make more of each rounding: 2.7 % was measured.
        close(precise, rough, 0.05 if arch == "mobilenet-v2" else 0.02)


def rewritten(graph, *arguments):
    before = graph.model(*arguments)
    after = onnx.load_from_string(half(before.SerializeToString()))
    assert interface(after) == interface(before)
    types, num = check_sound(after)
    close(before.SerializeToString(), after.SerializeToString(), 0.01)
    return after, types, num


@pytest.mark.parametrize("pool", ["GlobalAveragePool", "ReduceMean"])
def test_pooling_in_front_of_a_convolution_belongs_to_the_body(pool):
    graph = Graph()  # squeeze and excite
    features = graph.add("Relu", graph.conv("image", 3, 8, 3))
    if pool == "ReduceMean":
        axes = graph.constant(np.array([2, 3], dtype=np.int64))
        mean = graph.add(pool, features, axes, keepdims=1)
    else:
        mean = graph.add(pool, features)
    gate = graph.add("Sigmoid", graph.conv(graph.add("Relu", graph.conv(mean, 8, 2)), 2, 8))
    graph.head(graph.conv(graph.add("Mul", features, gate), 8, 8), 8)
    model, types, num = rewritten(graph)
    assert num == 4
    assert types[mean] == types[gate] == HALF
    assert len(nodes_of(model, "Cast")) == 2


def test_a_gate_of_matrix_products_belongs_to_the_body():
    graph = Graph()
    features = graph.conv("image", 3, 8, 3)
    flat = graph.add("Flatten", graph.add("GlobalAveragePool", features))
    gate = graph.add("Sigmoid", graph.add("MatMul", flat, graph.random(8, 8)))
    shape = graph.constant(np.array([-1, 8, 1, 1], dtype=np.int64))
    scaled = graph.add("Mul", features, graph.add("Reshape", gate, shape))
    graph.head(graph.conv(scaled, 8, 8), 8)
    model, _, num = rewritten(graph)
    assert num == 2 and len(nodes_of(model, "Cast")) == 2


def test_residual_joins_stay_half():
    graph = Graph()
    stem = graph.add("Relu", graph.conv("image", 3, 8, 3))
    joined = graph.add("Relu", graph.add("Add", graph.conv(stem, 8, 8, 3), stem))
    # The image itself joins in: it is cast once for the convolution and for this.
    graph.head(graph.add("Add", graph.conv(joined, 8, 3), "image"), 3)
    model, types, _ = rewritten(graph)
    assert {types[node.output[0]] for node in nodes_of(model, "Add")} == {HALF}
    assert len(nodes_of(model, "Cast")) == 2


def test_the_output_of_the_body_keeps_its_name_and_type():
    graph = Graph()
    graph.conv(graph.conv("image", 3, 8, 3), 8, 10, name="logits")
    model, types, _ = rewritten(graph, [("logits", ("batch", 10, 8, 8))])
    assert types["logits"] == SINGLE
    assert model.graph.node[-1].op_type == "Cast"


def test_an_output_inside_the_body_is_read_on_in_half():
    graph = Graph()
    features = graph.conv("image", 3, 8, 3, name="features")
    graph.head(graph.conv(features, 8, 8), 8)
    outputs = [("logits", ("batch", 10)), ("features", ("batch", 8, 8, 8))]
    model, types, _ = rewritten(graph, outputs)
    assert types["features"] == SINGLE
    assert all(types[node.input[0]] == HALF for node in nodes_of(model, "Conv"))


def test_a_constant_that_both_sides_read_has_both_types():
    graph = Graph()
    two = graph.constant(np.float32(2.5))
    features = graph.add("Mul", graph.conv(graph.add("Mul", "image", two), 3, 8, 3), two)
    graph.head(features, 8)
    _, types, _ = rewritten(graph)
    assert types[two] == SINGLE and types[f"{two}_half"] == HALF


def test_shapes_are_measured_without_a_cast():
    graph = Graph()
    features = graph.conv("image", 3, 8, 3)
    shape = graph.add("Shape", features)
    graph.head(graph.conv(graph.add("Reshape", features, shape), 8, 8), 8)
    model, types, _ = rewritten(graph)
    assert types[shape] == TensorProto.INT64 and len(nodes_of(model, "Cast")) == 2


def test_without_a_convolution_nothing_changes():
    graph = Graph()
    graph.head("image", 3)
    model = graph.model()
    content = model.SerializeToString()
    assert to_half(model) == 0
    assert model.SerializeToString() == content


@pytest.mark.parametrize("value", [65520.0, -1e6, np.inf, np.nan])
def test_weights_beyond_half_precision_are_refused(value):
    graph = Graph()
    graph.conv("image", 3, 10, name="logits")
    name = next(iter(graph.weights))
    graph.weights[name][0, 0, 0, 0] = value
    model = graph.model([("logits", ("batch", 10, 8, 8))])
    with pytest.raises(BuildError, match=rf"{name} reaches .*65504.*--precision fp32") as error:
        to_half(model)
    assert "\n" not in str(error.value)


def test_the_largest_half_is_not_refused():
    graph = Graph()
    graph.conv("image", 3, 10, name="logits")
    name = next(iter(graph.weights))
    graph.weights[name][0, 0, 0, 0] = -65504
    rewritten(graph, [("logits", ("batch", 10, 8, 8))])


def test_a_layer_that_wants_single_precision_gets_it():
    graph = Graph()
    features = graph.conv("image", 3, 8, 3)
    scales = graph.constant(np.array([1, 1, 2, 2], dtype=np.float32))
    larger = graph.add("Resize", features, "", scales, mode="nearest")
    graph.head(graph.conv(larger, 8, 8), 8)
    _, types, _ = rewritten(graph)
    assert types[larger] == HALF and types[scales] == SINGLE


def test_names_that_exist_are_not_made_again():
    graph = Graph()
    first = graph.conv("image", 3, 8, 3, name="image_half")
    graph.head(graph.conv(first, 8, 8), 8)
    rewritten(graph)


def test_a_cast_in_the_body_stays_in_it():
    graph = Graph()
    features = graph.add("Cast", graph.conv("image", 3, 8, 3), to=SINGLE)
    graph.head(graph.conv(features, 8, 8), 8)
    rewritten(graph)
