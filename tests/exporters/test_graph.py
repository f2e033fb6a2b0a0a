from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from oat_edge.exporters.graph import fold_affine_into_conv

RNG = np.random.default_rng(0)


def make_model(
    nodes,
    constants,
    *,
    outputs=("y",),
    inputs=(("x", ["N", 2, 5, 5]),),
):
    rank = len(inputs[0][1])
    graph = helper.make_graph(
        nodes,
        "hand-made",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, [f"{name}{axis}" for axis in range(rank)]
            )
            for name in outputs
        ],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def run(model, **feeds):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def kinds(model):
    return [node.op_type for node in model.graph.node]


def constants(num=3, groups=1, bias=True, **changes):
    made = {
        "w": RNG.normal(size=(num, 2 // groups, 3, 3)),
        "scale": RNG.normal(size=(1, num, 1, 1)),
        "shift": RNG.normal(size=(1, num, 1, 1)),
    }
    if bias:
        made["b"] = RNG.normal(size=num)
    return made | changes


def conv(*more, bias=True, **attributes):
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    return [helper.make_node("Conv", [*inputs, *more], ["c"], **attributes)]


AFFINE = [
    helper.make_node("Mul", ["c", "scale"], ["m"]),
    helper.make_node("Add", ["m", "shift"], ["y"]),
]


def check_left_alone(model):
    before = model.SerializeToString()
    assert fold_affine_into_conv(model) == 0
    assert model.SerializeToString() == before


@settings(max_examples=40)
@given(
    bias=st.booleans(),
    groups=st.sampled_from([1, 2]),
    swapped=st.booleans(),
    empty_bias=st.booleans(),
    stride=st.sampled_from([1, 2]),
)
def test_a_legal_affine_folds_and_the_result_is_the_same(bias, groups, swapped, empty_bias, stride):
    nodes = conv(*([""] if empty_bias and not bias else []), bias=bias, group=groups,
                 strides=[stride, stride])  # fmt: skip
    affine = AFFINE
    if swapped:  # the constant may come first
        affine = [
            helper.make_node("Mul", ["scale", "c"], ["m"]),
            helper.make_node("Add", ["shift", "m"], ["y"]),
        ]
    model = make_model([*nodes, *affine], constants(4, groups, bias))
    x = RNG.normal(size=(2, 2, 5, 5)).astype(np.float32)
    (before,) = run(model, x=x)
    assert fold_affine_into_conv(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert kinds(model) == ["Conv"] and [value.name for value in model.graph.output] == ["y"]
    assert len(model.graph.initializer) == 2
    (after,) = run(model, x=x)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_several_convolutions_fold_each_with_its_own_affine_even_with_one_weight():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["c", "scale"], ["m"]),
        helper.make_node("Add", ["m", "shift"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["c2"]),
        helper.make_node("Mul", ["c2", "scale2"], ["m2"]),
        helper.make_node("Add", ["m2", "shift2"], ["y"]),
    ]
    second = {"scale2": RNG.normal(size=(1, 2, 1, 1)), "shift2": RNG.normal(size=(1, 2, 1, 1))}
    model = make_model(nodes, constants(2, bias=False) | second)
    x = RNG.normal(size=(1, 2, 5, 5)).astype(np.float32)
    (before,) = run(model, x=x)
    assert fold_affine_into_conv(model) == 2
    assert kinds(model) == ["Conv", "Relu", "Conv"]
    np.testing.assert_allclose(run(model, x=x)[0], before, rtol=1e-4, atol=1e-4)


def test_a_convolution_with_two_readers_is_left_alone():
    nodes = [*conv(), *AFFINE, helper.make_node("Relu", ["c"], ["z"])]
    check_left_alone(make_model(nodes, constants(), outputs=("y", "z")))


def test_a_product_with_two_readers_is_left_alone():
    nodes = [*conv(), *AFFINE, helper.make_node("Relu", ["m"], ["z"])]
    check_left_alone(make_model(nodes, constants(), outputs=("y", "z")))


@pytest.mark.parametrize("between", ["c", "m"])
def test_what_is_itself_an_output_is_left_alone(between):
    check_left_alone(make_model([*conv(), *AFFINE], constants(), outputs=("y", between)))


def test_a_square_is_not_an_affine():
    nodes = [*conv(), helper.make_node("Mul", ["c", "c"], ["m"]), AFFINE[1]]
    check_left_alone(make_model(nodes, {k: v for k, v in constants().items() if k != "scale"}))


@pytest.mark.parametrize("name", ["scale", "shift"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (3, 1, 1), (1,), (), (1, 1, 1, 1), (1, 3, 3, 1)])
def test_a_constant_that_is_not_per_channel_is_left_alone(name, shape):
    changed = constants(**{name: RNG.normal(size=shape)})
    check_left_alone(make_model([*conv(), *AFFINE], changed))


@pytest.mark.parametrize("name", ["scale", "shift", "w", "b"])
def test_what_is_fed_at_run_time_is_left_alone(name):
    made = constants()
    shape = list(made.pop(name).shape)
    model = make_model([*conv(), *AFFINE], made, inputs=(("x", ["N", 2, 5, 5]), (name, shape)))
    check_left_alone(model)


@pytest.mark.parametrize("size", [(5,), (5, 5, 5)])
def test_convolutions_that_are_not_of_images_are_left_alone(size):
    """(1, C, 1, 1) lies along another axis there; C = 3 makes the shapes fit all the same."""
    made = constants(w=RNG.normal(size=(3, 2, *[3] * len(size))))
    shape = ["N", 2, *size]
    check_left_alone(make_model([*conv(), *AFFINE], made, inputs=(("x", shape),)))


def test_only_what_nobody_reads_is_dropped():
    nodes = [*conv(), *AFFINE, helper.make_node("Add", ["y", "scale"], ["z"])]
    model = make_model(nodes, constants(), outputs=("z",))
    x = RNG.normal(size=(1, 2, 5, 5)).astype(np.float32)
    (before,) = run(model, x=x)
    assert fold_affine_into_conv(model) == 1
    names = {tensor.name for tensor in model.graph.initializer}
    assert "scale" in names and not names & {"w", "b", "shift"}
    np.testing.assert_allclose(run(model, x=x)[0], before, rtol=1e-4, atol=1e-4)
