from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from oat_edge.errors import GateError
from oat_edge.exporters.half import to_half
from oat_edge.exporters.to_onnx import export
from oat_edge.exporters.verify import check_parity
from oat_edge.nn.fold import fold
from oat_edge.runtime.ort import OrtRunner
from oat_edge.runtime.runner import RunnerIO
from tests.evaluation.changes import broken_at, first_lambda_for_all, other_classes

WIDTH = 0.5
MANY = np.random.default_rng(0).random((256, 1, 8, 8), dtype=np.float32)
IMAGES = MANY[:16]


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


@pytest.fixture
def parity_of(checkpoint, tmp_path):
    """Check parity of a graph."""
    spec = checkpoint.spec
    io = RunnerIO(image_shape=spec.image_shape, num_classes=10, lambdas=spec.lambdas)

    def check(model, precision="fp32", images=IMAGES):
        path = tmp_path / "graph.onnx"
        path.write_bytes(model.SerializeToString())
        with OrtRunner(path, io, precision=precision, threads=1) as runner:
            return check_parity(checkpoint.network, WIDTH, runner, images)

    return check


@pytest.fixture
def half(half_bundle, parity_of):
    """Check parity of a half-precision version of the exported file, after `change`."""

    def check(change=lambda model: None):
        model = onnx.load(half_bundle.checked_path(half_bundle.artifacts[0]))
        assert to_half(model) > 0
        change(model)
        return parity_of(model, "fp16", MANY)

    return check


def test_an_honest_file_passes_and_says_how_it_was_compared(parity, checkpoint):
    figures = parity()
    assert 0 < figures.mean_abs_diff < figures.max_abs_diff <= 1e-4 == figures.tolerance
    assert figures.argmax_agreement == 1.0 and figures.batch_sizes == (1, 5, 32)
    assert set(checkpoint.spec.lambdas) < set(figures.lambdas)
    assert figures.num_images == 16 and figures.num_pairs == 16 * len(figures.lambdas)
    value = figures.to_json()
    assert value["max_abs_diff"] == figures.max_abs_diff
    assert value["gate"] == {"kind": "max_abs_diff", "limit": 1e-4, "max_relative_diff": None}


def test_one_lambda_for_a_whole_batch_is_found(parity_of, half_bundle, tmp_path):
    model = onnx.load(half_bundle.checked_path(half_bundle.artifacts[0]))
    first_lambda_for_all(model)
    with pytest.raises(GateError, match="differs from PyTorch"):
        parity_of(model)


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

    with pytest.raises(GateError, match="not finite numbers"):
        parity(change)


def test_a_reference_that_is_not_a_number_is_found(parity, make_checkpoint):
    broken = make_checkpoint().network
    broken.get_parameter("backbone.net.fc.bias").data[0] = float("nan")
    with pytest.raises(GateError):
        parity(network=broken)


def test_another_network_of_the_same_shape_is_found(parity, make_checkpoint):
    with pytest.raises(GateError):
        parity(network=make_checkpoint(seed=1).network)


def test_half_precision_is_compared_on_enough_pairs_and_by_its_classes(half, checkpoint):
    figures = half()
    assert figures.gate.kind == "argmax_agreement" and figures.tolerance is None
    assert figures.argmax_agreement >= 0.995
    # 99.5 % must leave room for more than one near-tie.
    assert figures.num_pairs == 64 * len(figures.lambdas) and figures.num_pairs * 0.005 > 3
    assert set(checkpoint.spec.lambdas) < set(figures.lambdas)


def test_half_precision_with_other_classes_is_found(half):
    with pytest.raises(GateError, match=r"class on \d+\.\d+% of 768 .* pairs, expected 99\.5%"):
        half(other_classes)


def test_half_precision_that_is_not_a_number_is_found(half):
    with pytest.raises(GateError, match="not finite"):
        half(broken_at(0.3, np.nan))


def test_a_pinned_file_in_half_precision_gets_more_images(checkpoint, tmp_path):
    folded, spec = fold(checkpoint.network, WIDTH), checkpoint.spec
    artifact = export(
        folded, spec, width=WIDTH, folder=tmp_path, checkpoint_sha256="c" * 64,
        precision="fp16", pinned_lambda=0.3,
    )  # fmt: skip
    io = RunnerIO(
        image_shape=spec.image_shape, num_classes=10, lambdas=spec.lambdas, pinned_lambda=0.3
    )
    with OrtRunner(tmp_path / artifact.file, io, precision="fp16", threads=1) as runner:
        figures = check_parity(checkpoint.network, WIDTH, runner, MANY)
    assert figures.lambdas == (0.3,) and figures.num_images == 256 == figures.num_pairs


def test_images_are_spread_over_all_that_are_given(checkpoint, half_bundle):
    """A data set that is sorted by class does not give images of one class only."""
    shown = []

    class Watched(OrtRunner):
        def infer(self, image, lam=None):
            shown.append(image)
            return super().infer(image, lam)

    spec = checkpoint.spec
    io = RunnerIO(image_shape=spec.image_shape, num_classes=10, lambdas=spec.lambdas)
    path = half_bundle.checked_path(half_bundle.artifacts[0])
    with Watched(path, io, threads=1) as runner:
        check_parity(checkpoint.network, WIDTH, runner, MANY)
    seen = {image.tobytes() for image in np.concatenate(shown)}
    places = [place for place, image in enumerate(MANY) if image.tobytes() in seen]
    assert len(places) == 16 and places[0] == 0 and places[-1] == 255
    assert max(np.diff(places)) <= 18
