from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from oat_edge.errors import GateError
from oat_edge.exporters.verify import TOLERANCE, check_parity, compared_lambdas
from oat_edge.runtime.ort import OrtRunner
from oat_edge.runtime.runner import RunnerIO

WIDTH = 0.5
IMAGES = np.random.default_rng(0).random((16, 1, 8, 8), dtype=np.float32)


@pytest.fixture
def parity(checkpoint, half_bundle, tmp_path):
    """Check parity of the exported file after `change` was done to its tensors."""
    spec = checkpoint.spec
    io = RunnerIO(image_shape=spec.image_shape, num_classes=10, lambdas=spec.lambdas)
    exported = half_bundle.checked_path(half_bundle.artifacts[0])

    def check(change=None, network=checkpoint.network):
        path = exported
        if change is not None:
            model, path = onnx.load(exported), tmp_path / "changed.onnx"
            tensors = {tensor.name: tensor for tensor in model.graph.initializer}
            arrays = {name: numpy_helper.to_array(t).copy() for name, t in tensors.items()}
            change(arrays)
            for name, tensor in tensors.items():
                tensor.CopyFrom(numpy_helper.from_array(arrays[name], name))
            path.write_bytes(model.SerializeToString())
        with OrtRunner(path, io, threads=1) as runner:
            return check_parity(network, WIDTH, runner, IMAGES)

    return check


def test_an_honest_file_passes_and_says_how_it_was_compared(parity, checkpoint):
    figures = parity()
    assert 0 < figures.max_abs_diff <= TOLERANCE == figures.tolerance
    assert figures.argmax_agreement == 1.0 and figures.batch_sizes == (1, 5)
    assert set(checkpoint.spec.lambdas) < set(figures.lambdas)
    assert figures.num_images >= 6 * len(figures.lambdas)
    assert figures.to_json()["max_abs_diff"] == figures.max_abs_diff


def conv_weights(arrays):
    return sorted(
        name for name, array in arrays.items() if array.ndim == 4 and array.shape[-1] == 3
    )


@pytest.mark.parametrize("layer", range(7))
def test_a_filter_that_is_off_by_a_hundredth_is_found(parity, layer):
    def change(arrays):
        weight = arrays[conv_weights(arrays)[layer]]
        weight[: len(weight) // 4] += 1e-2

    with pytest.raises(GateError, match=r"width 0\.5 in onnxruntime-cpu differs .*allowed"):
        parity(change)


def test_one_weight_that_is_off_by_a_hundredth_is_found(parity):
    def change(arrays):
        (bias,) = [array for array in arrays.values() if array.shape == (10,)]
        bias[7] += 1e-2

    with pytest.raises(GateError):
        parity(change)


@pytest.mark.parametrize("knot", range(6))
def test_a_table_that_is_wrong_at_a_single_knot_is_found(parity, knot):
    def change(arrays):
        # Six knots; one or two tables, according to how scales and shifts are laid out.
        (table, *_) = [a for a in arrays.values() if a.ndim == 2 and a.shape[0] == 6]
        table[knot, :8] += 1e-1

    with pytest.raises(GateError):
        parity(change)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_found(parity, value):
    def change(arrays):
        (bias,) = [array for array in arrays.values() if array.shape == (10,)]
        bias[3] = value

    with pytest.raises(GateError, match="differs from PyTorch by inf"):
        parity(change)


def test_a_reference_that_is_not_a_number_is_found(parity, make_checkpoint):
    broken = make_checkpoint().network
    broken.get_parameter("backbone.net.fc.bias").data[0] = float("nan")
    with pytest.raises(GateError):
        parity(network=broken)


def test_another_network_of_the_same_shape_is_found(parity, make_checkpoint):
    with pytest.raises(GateError):
        parity(network=make_checkpoint(seed=1).network)


@given(st.lists(st.integers(1, 99).map(lambda n: n / 100), unique=True, max_size=6).map(sorted))
def test_all_knots_gaps_and_a_lambda_below_the_first_knot_are_compared(inner):
    knots = (0.0, *inner, 1.0)
    compared = compared_lambdas(knots)
    assert set(knots) < set(compared) and list(compared) == sorted(set(compared))
    for low, high in itertools.pairwise(knots):
        assert any(low < lam < high for lam in compared)
    assert any(0 < lam < knots[1] / 2 for lam in compared)


def test_a_dedicated_network_is_compared_at_its_lambda():
    assert compared_lambdas((0.3,)) == (0.3,)
