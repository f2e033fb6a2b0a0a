from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from oat_edge.calib.batches import CalibrationSet, make_batches
from oat_edge.calib.ranges import METHODS, NUM_BINS, collect_ranges
from oat_edge.data import Dataset
from oat_edge.errors import InputError
from oat_edge.exporters.to_onnx import export
from oat_edge.nn.fold import FoldedNetwork, fold
from tests.conftest import make_network, spec_of

KNOTS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)


@pytest.fixture(scope="module")
def folded() -> FoldedNetwork:
    return fold(make_network(), 0.5)


@pytest.fixture(scope="module")
def model(folded: FoldedNetwork, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    folder = tmp_path_factory.mktemp("ranges")
    artifact = export(folded, spec_of(), width=0.5, folder=folder, checkpoint_sha256="")
    return onnx.load(folder / artifact.file)


@pytest.fixture(scope="module")
def calibration(folded: FoldedNetwork, digits: Dataset) -> CalibrationSet:
    return make_batches(
        folded, digits.train, lambdas=KNOTS, eps=32 / 255, attack_steps=2, num_images=60
    )


def image_path(model: onnx.ModelProto) -> list[str]:
    """Every float tensor that depends on the image."""
    behind, found = {"image"}, ["image"]
    for node in model.graph.node:
        if not behind.isdisjoint(node.input):
            behind.update(node.output)
            found.extend(node.output)
    return found


def layer_inputs(model: onnx.ModelProto) -> list[str]:
    behind = set(image_path(model))
    inputs = [n.input[0] for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    return [name for name in dict.fromkeys(inputs) if name in behind]


def activations(
    model: onnx.ModelProto, tensors: list[str], calibration: CalibrationSet
) -> dict[str, np.ndarray]:
    """A forward pass of ONNX Runtime that gives the tensors themselves."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    outputs = {value.name for value in model.graph.output}
    for name in tensors:
        if name not in outputs:
            shown.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options)
    names = [value.name for value in session.get_inputs()]
    runs = [
        session.run(
            tensors, {k: v for k, v in (("image", b.image), ("lambda", b.lam)) if k in names}
        )
        for b in calibration.batches()
    ]
    return {
        name: np.concatenate(parts)
        for name, parts in zip(tensors, zip(*runs, strict=True), strict=True)
    }


def test_min_max_is_what_a_fresh_pass_gives(
    model: onnx.ModelProto, calibration: CalibrationSet
) -> None:
    tensors = image_path(model)
    before = model.SerializeToString()
    ranges = collect_ranges(model, tensors, calibration, method="minmax")
    assert model.SerializeToString() == before
    assert list(ranges) == tensors
    for name, values in activations(model, tensors, calibration).items():
        assert ranges[name] == pytest.approx((values.min(), values.max()), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_method_lies_inside_min_max(
    model: onnx.ModelProto, calibration: CalibrationSet, method: str, symmetric: bool
) -> None:
    tensors = layer_inputs(model)[:2]
    outer = collect_ranges(model, tensors, calibration, method="minmax", symmetric=symmetric)
    inner = collect_ranges(
        model, tensors, calibration, method=method, percentile=99, symmetric=symmetric
    )
    for name in tensors:
        assert outer[name][0] <= inner[name][0] < inner[name][1] <= outer[name][1]
        if symmetric:
            assert inner[name][0] == -inner[name][1]
    assert (inner == outer) == (method == "minmax")


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_batches_does_not_matter(
    model: onnx.ModelProto, calibration: CalibrationSet, method: str
) -> None:
    tensors = layer_inputs(model)[1:2]

    def found(batch_size: int) -> dict[str, tuple[float, float]]:
        one = dataclasses.replace(calibration, batch_size=batch_size)
        return collect_ranges(model, tensors, one, method=method, percentile=99)

    whole, parts = found(len(calibration)), found(7)
    assert -(-len(calibration) // 7) > 1 and len(calibration) % 7
    for name in tensors:
        # Another batch may round differently: a value near an edge moves to the next bin.
        bin_width = 2 * max(map(abs, whole[name])) / NUM_BINS.get(method, 1 << 20)
        assert parts[name] == pytest.approx(whole[name], abs=1.5 * bin_width)


def test_sweeping_lambda_widens(model: onnx.ModelProto, calibration: CalibrationSet) -> None:
    tensors = image_path(model)
    swept = collect_ranges(model, tensors, calibration, method="minmax")
    at_zero = collect_ranges(
        model, tensors, calibration.take(calibration.lam == 0), method="minmax"
    )
    slack = 1e-5
    for name in tensors:
        assert swept[name][0] <= at_zero[name][0] + slack
        assert swept[name][1] >= at_zero[name][1] - slack
    # The two batch norms differ, so λ = 0 alone must not be enough.
    assert any(swept[name][1] > 1.05 * at_zero[name][1] for name in tensors)


@settings(max_examples=10)
@given(lam=st.floats(0.001, 1.0))
def test_first_affine_stays_in_range_between_knots(
    model: onnx.ModelProto, calibration: CalibrationSet, lam: float
) -> None:
    conv, scale, first = (n.output[0] for n in first_affine(model))
    images = calibration.take(calibration.lam == 0)

    def found(value: float) -> tuple[float, float]:
        at = dataclasses.replace(images, lam=np.full(len(images), value, np.float32))
        values = activations(model, [conv, scale, first], at)[first]
        return float(values.min()), float(values.max())

    neighbours = [pair for pair in pairwise(KNOTS[1:]) if pair[0] <= max(lam, KNOTS[1]) <= pair[1]]
    low, high = zip(*[found(knot) for knot in neighbours[0]], strict=True)
    here = found(lam)
    assert min(low) - 1e-5 <= here[0] and here[1] <= max(high) + 1e-5


def first_affine(model: onnx.ModelProto) -> tuple[Any, Any, Any]:
    """Conv -> Mul -> Add."""
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    (scale,) = readers[conv.output[0]]
    (shift,) = readers[scale.output[0]]
    assert (scale.op_type, shift.op_type) == ("Mul", "Add")
    return conv, scale, shift


def test_pinned_graph_has_no_lambda(
    folded: FoldedNetwork, calibration: CalibrationSet, tmp_path: Path
) -> None:
    artifact = export(
        folded, spec_of(), width=0.5, folder=tmp_path, checkpoint_sha256="", pinned_lambda=1.0
    )
    pinned = onnx.load(tmp_path / artifact.file)
    tensors = layer_inputs(pinned)
    ranges = collect_ranges(pinned, tensors, calibration, method="minmax")
    for name, values in activations(pinned, tensors, calibration).items():
        assert ranges[name] == pytest.approx((values.min(), values.max()), rel=1e-5, abs=1e-6)


def test_progress_grows_to_one_and_nothing_is_printed(
    model: onnx.ModelProto, calibration: CalibrationSet, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in METHODS:
        shares: list[float] = []
        collect_ranges(model, ["image"], calibration, method=method, progress=shares.append)
        assert shares == sorted(shares) and shares[-1] == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        ([], {}, "no tensors"),
        (["nowhere"], {}, "no tensor 'nowhere'"),
        (["image"], {"method": "guess"}, "expected minmax, entropy, percentile"),
        (["image"], {"percentile": 100.5}, "expected 50 to 100"),
        (["image"], {"percentile": float("nan")}, "expected 50 to 100"),
    ],
)
def test_refused(
    model: onnx.ModelProto,
    calibration: CalibrationSet,
    tensors: list[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        collect_ranges(model, tensors, calibration, **changes)
