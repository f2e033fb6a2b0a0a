from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from oat_edge.calib.batches import CalibrationSet
from oat_edge.calib.ranges import METHODS, NUM_BINS, collect_ranges
from oat_edge.errors import BuildError


def graph(*nodes: Any, pixels: int = 4, **constants: np.ndarray) -> onnx.ModelProto:
    """image -> nodes -> logits."""
    made = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 1, pixels])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(made, opset_imports=opset, ir_version=10)


def images_of(values: np.ndarray, batch_size: int = 64) -> CalibrationSet:
    """A set of one-pixel-high images (N, pixels) at λ = 0."""
    images = values.astype(np.uint8)[:, None, None, :]
    num = len(images)
    zeros = np.zeros(num, dtype=np.int64)
    return CalibrationSet(
        images=np.ascontiguousarray(images),
        lam=np.zeros(num, dtype=np.float32),
        adversarial=np.zeros(num, dtype=bool),
        labels=zeros,
        indices=np.arange(num),
        settings={},
        batch_size=batch_size,
    )


@settings(max_examples=10)
@given(percentile=st.floats(90, 100), seed=st.integers(0, 99))
def test_percentile_leaves_out_its_share(percentile: float, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, size=(200, 10))
    negated = graph(helper.make_node("Neg", ["image"], ["logits"]), pixels=10)
    low, high = collect_ranges(
        negated, ["logits"], images_of(values), method="percentile", percentile=percentile
    )["logits"]
    cut = (100 - percentile) / 2
    # The grid of pixels, and a bin.
    expected = np.percentile(-values / 255, [cut, 100 - cut])
    assert (low, high) == pytest.approx(tuple(expected), abs=1.5 / 255 + 2 / NUM_BINS["percentile"])


def test_entropy_cuts_an_outlier() -> None:
    values = np.random.default_rng(0).integers(0, 40, size=(400, 4))
    values[0, 0] = 255
    low, high = collect_ranges(
        graph(helper.make_node("Identity", ["image"], ["logits"])),
        ["logits"],
        images_of(values),
        method="entropy",
    )["logits"]
    assert low == 0 and 30 / 255 < high < 0.7


def test_constant_activation_keeps_its_value() -> None:
    for method in METHODS:
        found = collect_ranges(
            graph(helper.make_node("Identity", ["image"], ["logits"])),
            ["logits"],
            images_of(np.full((10, 4), 51)),
            method=method,
        )
        assert found["logits"] == pytest.approx((0.2, 0.2))


def test_one_nan_among_numbers_is_refused() -> None:
    # 0/0 in one of four pixels of one image: the extremes of the others look sound.
    values = np.full((100, 4), 100)
    values[70, 2] = 0
    divided = graph(
        helper.make_node("Div", ["image", "image"], ["one"]),
        helper.make_node("Neg", ["one"], ["logits"]),
    )
    for method in METHODS:
        with pytest.raises(BuildError, match="'one' is not a finite number"):
            collect_ranges(divided, ["one", "logits"], images_of(values, 32), method=method)


def test_infinity_is_refused() -> None:
    values = np.full((10, 4), 100)
    values[3, 1] = 0
    inverse = graph(helper.make_node("Reciprocal", ["image"], ["logits"]))
    with pytest.raises(BuildError, match="'logits' is not a finite number"):
        collect_ranges(inverse, ["logits"], images_of(values), method="minmax")


def test_dead_activation_is_refused() -> None:
    dead = graph(
        helper.make_node("Neg", ["image"], ["negative"]),
        helper.make_node("Relu", ["negative"], ["dead"]),
        helper.make_node("Identity", ["dead"], ["logits"]),
    )
    images = images_of(np.full((10, 4), 100))
    with pytest.raises(BuildError, match="'dead' is zero on every"):
        collect_ranges(dead, ["negative", "dead"], images)
    # Nobody asked about it: it may be dead.
    assert collect_ranges(dead, ["negative"], images)["negative"][1] < 0
