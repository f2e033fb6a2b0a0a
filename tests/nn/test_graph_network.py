"""The exported graph in torch: what it computes, its gradients, what it refuses."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from oat_edge.errors import BuildError, InputError
from oat_edge.exporters.int8 import activations, insert_qdq, prepare
from oat_edge.nn.fold import fold
from oat_edge.nn.graph_network import GraphNetwork
from tests.conftest import make_network
from tests.exporters.graphs import exported, image_shape

# Exporting the largest takes many seconds.
MOBILE = pytest.param("mobilenet-v2", marks=pytest.mark.slow)
ARCHS = ("resnet8", "wrn-16-1", MOBILE)
KNOTS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)
NO_REWRITE = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def reference(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output of ONNX Runtime, node by node as the graph says, on any CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = NO_REWRITE
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    taken = {value.name: feed[value.name] for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, taken), strict=True))


def batch(shape: tuple[int, ...], num: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lam = np.resize(np.float32((*KNOTS, 0.05, 0.7)), num)
    return {"image": rng.random((num, *shape), dtype=np.float32), "lambda": lam}


@functools.cache
def model_of(arch: str, kind: str, pinned: bool = False) -> onnx.ModelProto:
    """kind: "fp32", "plain" (ONNX Runtime's quantiser, signed), "cpu" or "trt" (our own)."""
    if kind in ("fp32", "plain"):
        precision = "int8" if kind == "plain" else kind
        return onnx.load_from_string(exported(arch, 0.5, precision, pinned))
    prepared = prepare(model_of(arch, "fp32", pinned), target=kind)
    looked_at = onnx.ModelProto()
    looked_at.CopyFrom(prepared)
    feed = batch(image_shape(arch), 8, seed=1)
    names = [name for name in activations(prepared, target=kind) if name not in feed]
    for name in names:
        if name != "logits":
            value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            looked_at.graph.output.append(value)
    seen = feed | reference(looked_at, feed)
    # A little less than what was seen: some values are clipped.
    ranges = {
        name: (float(seen[name].min()) / 1.1, float(seen[name].max()) / 1.1)
        for name in activations(prepared, target=kind)
    }
    return insert_qdq(prepared, ranges, target=kind)


def torch_logits(network: GraphNetwork, feed: dict[str, np.ndarray]) -> np.ndarray:
    image, lam = (torch.from_numpy(feed[name]) for name in ("image", "lambda"))
    with torch.no_grad():
        return network(image, lam if network.takes_lambda else None).numpy()


@pytest.mark.parametrize(
    ("arch", "pinned"),
    [
        ("resnet8", False),
        ("resnet8", True),
        ("wrn-16-1", False),
        pytest.param("mobilenet-v2", False, marks=pytest.mark.slow),
        pytest.param("mobilenet-v2", True, marks=pytest.mark.slow),
    ],
)
def test_a_float32_file_is_computed_as_onnx_runtime_does(arch, pinned):
    network, feed = GraphNetwork(model_of(arch, "fp32", pinned)), batch(image_shape(arch), 9)
    ours, theirs = torch_logits(network, feed), reference(model_of(arch, "fp32", pinned), feed)
    # 53 layers that were never trained make more of each rounding: both are 8e-6 of the largest
    # logit from what float64 gives, behind 9 layers 5e-7.
    limit = 5e-5 if arch == "mobilenet-v2" else 1e-5
    assert np.abs(ours - theirs["logits"]).max() <= limit * np.abs(theirs["logits"]).max()
    assert np.ptp(ours, axis=0).max() > 0.01 * np.abs(ours).max(), "this compares nothing"


@pytest.mark.parametrize("kind", ["plain", "cpu", "trt"])
@pytest.mark.parametrize("arch", ARCHS)
def test_an_int8_file_is_computed_as_onnx_runtime_does(arch, kind):
    """A sum on the edge of two levels may fall on the other one: in few images, a few steps.

    53 layers that were never trained make those steps large: a pixel that is 1e-7 brighter moves
    ONNX Runtime's own logits by up to a quarter of their span. There, images without such a sum
    must agree, and that must be half of them.
    """
    model, deep = model_of(arch, kind), arch == "mobilenet-v2"
    network, feed = GraphNetwork(model), batch(image_shape(arch), 16 if deep else 120, seed=2)
    ours, theirs = torch_logits(network, feed), reference(model, feed)["logits"]
    span = np.abs(theirs).max()
    apart = np.abs(ours - theirs).max(axis=1) / span
    assert (apart <= 1e-4).mean() >= (0.5 if deep else 0.8)
    if not deep:
        assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() >= 0.99
        assert apart.max() <= 0.02
    # And it is not the float32 network that is compared.
    fp32 = reference(model_of(arch, "fp32"), feed)["logits"]
    assert np.median(np.abs(ours - fp32).max(axis=1)) > 10 * np.median(apart) * span


@pytest.mark.parametrize("kind", ["fp32", "cpu", "trt"])
@given(seed=st.integers(0, 99), lam=st.sampled_from((*KNOTS, 0.05, 0.7)), num=st.integers(1, 5))
@settings(max_examples=8)
def test_one_lambda_for_all_images_is_that_lambda_for_each(kind, seed, lam, num):
    network = GraphNetwork(model_of("resnet8", kind))
    image = torch.from_numpy(batch((1, 8, 8), num, seed)["image"])
    one, each = network.at(torch.tensor([lam])), network.at(torch.full((num,), lam))
    assert torch.allclose(one(image), each(image), atol=1e-5)
    # A second pass is as the first: what the first one freed was its own.
    assert torch.equal(one(image), one(image))


@pytest.mark.parametrize("arch", ["resnet8", "wrn-16-1"])
def test_gradients_of_the_float32_file_are_those_of_the_folded_network(arch):
    folded = fold(make_network(arch, image_shape(arch)), 0.5)
    feed = batch(image_shape(arch), 6)
    gradients = []
    for network in (folded, GraphNetwork(model_of(arch, "fp32"))):
        image = torch.from_numpy(feed["image"]).requires_grad_(True)
        logits = network.at(torch.from_numpy(feed["lambda"]))(image)
        (gradient,) = torch.autograd.grad(logits.square().sum(), image)
        gradients.append(gradient)
    first, second = gradients
    assert first.abs().max() > 0
    assert (first - second).abs().max() <= 1e-4 * first.abs().max()


@pytest.mark.parametrize("kind", ["plain", "cpu", "trt"])
def test_gradients_of_an_int8_file_point_where_those_of_float32_do(kind):
    feed, gradients = batch((1, 8, 8), 12), []
    for one in ("fp32", kind):
        network = GraphNetwork(model_of("resnet8", one))
        image = torch.from_numpy(feed["image"]).requires_grad_(True)
        loss = torch.logsumexp(network(image, torch.from_numpy(feed["lambda"])), dim=1).sum()
        gradients.append(torch.autograd.grad(loss, image)[0].flatten(1))
    cosine = torch.nn.functional.cosine_similarity(*gradients)
    assert cosine.mean() > 0.6 and cosine.min() > 0.2


def small(
    nodes, constants, *, shape=(2, 3, 4, 4), opset=18, outputs=("logits",), inputs=("image",)
):
    """A graph of these nodes on an image, of any output."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def quantiser(scale, zero_point, axis=1):
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"], axis=axis),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["logits"], axis=axis),
    ]
    return small(nodes, {"s": scale, "z": zero_point})


@given(data=st.data(), dtype=st.sampled_from((np.uint8, np.int8)), per_axis=st.booleans())
@settings(max_examples=40)
def test_rounding_is_onnx_runtimes_and_its_gradient_is_1_inside_and_0_where_it_clips(
    data, dtype, per_axis
):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    size = 3 if per_axis else None
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scale = rng.choice(np.float32([0.25, 0.5, 1.0]), size=size)  # exact, so that ties are ties
    zero_point = rng.integers(low, high + 1, size=size).astype(dtype)
    model = quantiser(np.float32(scale), np.array(zero_point, dtype))
    image = (rng.integers(-1200, 1200, (2, 3, 4, 4)) / 8).astype(np.float32)
    x = torch.from_numpy(image).requires_grad_(True)
    y = GraphNetwork(model)(x)
    assert np.array_equal(y.detach().numpy(), reference(model, {"image": image})["logits"])
    (gradient,) = torch.autograd.grad(y.sum(), x)
    shape = (1, -1, 1, 1)
    level = np.round(image / scale.reshape(shape)) + zero_point.astype(np.int64).reshape(shape)
    assert np.array_equal(gradient.numpy(), ((level >= low) & (level <= high)).astype(np.float32))


# Operators that converted CNNs hold, beside those of the networks above.
OTHERS = {
    "Flatten": ({"axis": 2}, {}),
    "GlobalAveragePool": ({}, {}),
    "Identity": ({}, {}),
    "Max": ({}, {"c": np.float32(0.4)}),
    "Min": ({}, {"c": np.float32(0.4)}),
    "MaxPool": ({"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 0]}, {}),
    "Sigmoid": ({}, {}),
    "Squeeze": ({}, {"axes": np.array([0], np.int64)}),
    "Transpose": ({"perm": [0, 2, 3, 1]}, {}),
    "Conv": ({"pads": [0, 1, 2, 0], "strides": [2, 1]}, {"w": np.ones((2, 3, 2, 3), np.float32)}),
    "Split": ({"axis": 1, "num_outputs": 1}, {}),
    "Reshape": ({}, {"shape": np.array([0, -1], np.int64)}),
    "Clip": ({}, {"low": np.float32(0.2), "high": np.float32(0.6)}),
    "ReduceMean": ({"keepdims": 0}, {"axes": np.array([1, 3], np.int64)}),
}


@pytest.mark.parametrize("op", OTHERS)
def test_every_operator_is_onnx_runtimes(op):
    attributes, constants = OTHERS[op]
    shape = (1, 3, 4, 4)
    node = helper.make_node(op, ["image", *constants], ["logits"], **attributes)
    model = small([node], constants, shape=shape)
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    ours = GraphNetwork(model)(torch.from_numpy(image)).numpy()
    theirs = reference(model, {"image": image})["logits"]
    assert ours.shape == theirs.shape and np.allclose(ours, theirs, atol=1e-6)


def relu(**changes):
    return small([helper.make_node("Relu", ["image"], ["logits"])], {}, **changes)


def test_what_is_no_export_is_refused_in_one_line():
    node = helper.make_node("Einsum", ["image"], ["logits"], equation="abcd->ab", name="odd")
    cases = {
        "operator Einsum of node 'odd' is none that exports hold": small([node], {}),
        r"opsets \{'ai.onnx': 13\}, expected ai.onnx 18": relu(opset=13),
        r"inputs \['image', 'mask'\]": relu(inputs=("image", "mask")),
        "MaxPool 'logits' has auto_pad, ceil_mode": small(
            [
                helper.make_node(
                    "MaxPool", ["image"], ["logits"], kernel_shape=[2, 2], auto_pad="SAME_UPPER"
                )
            ],
            {},
        ),
        "the graph holds float16": small(
            [helper.make_node("Add", ["image", "c"], ["logits"])], {"c": np.float16(1)}
        ),
    }
    for pattern, model in cases.items():
        with pytest.raises(BuildError, match=pattern) as caught:
            GraphNetwork(model)(torch.zeros(1, 3, 4, 4))
        assert "\n" not in str(caught.value)


def test_a_lambda_is_given_exactly_where_the_file_takes_one(tmp_path):
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(InputError, match="λ is missing, this file takes λ as an input"):
        GraphNetwork(model_of("resnet8", "fp32"))(image)
    with pytest.raises(InputError, match="λ is given, this file has its λ pinned"):
        GraphNetwork(model_of("resnet8", "fp32", pinned=True)).at(torch.zeros(1))
    (tmp_path / "a.onnx").write_bytes(b"no onnx file")
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        GraphNetwork.load(tmp_path / "a.onnx")
