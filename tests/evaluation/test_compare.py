from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from oat_edge.bench.inputs import read_packs
from oat_edge.bundle import Artifact
from oat_edge.errors import DependencyError, InputError
from oat_edge.evaluation.compare import CompareConfig, compare_bundle
from oat_edge.evaluation.parity import MAX_ABS_DIFF, compared_lambdas, expected_logits
from oat_edge.evaluation.reference import network_logits
from oat_edge.runtime import open_artifact
from oat_edge.runtime.recipe import Recipe
from tests.evaluation.changes import (
    all_logits_higher,
    broken_at,
    changed,
    copy_of,
    find,
    first_lambda_for_all,
    in_half,
    listed,
    nearest_tenth,
    one_weight,
    other_classes,
)
from tests.gpus import on_gpu, without_gpu

KNOB, PINNED = "w0.50-fp32.onnx", "w0.50-fp32-lambda1.onnx"


HALF = "w0.50-fp16.onnx"


LIMIT = MAX_ABS_DIFF["cpu"]


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    """A copy of the run's bundle, to be changed."""
    return copy_of(tiny_bundle, tmp_path)


def compare(bundle, checkpoint, **changes):
    reason = None if checkpoint else "torch is not installed"
    config = CompareConfig(**{"num_samples": 6, **changes})
    return compare_bundle(bundle, config, checkpoint=checkpoint, reason=reason)


def row_of(found, file):
    (row,) = (row for row in found.rows if row.artifact == file)
    return row


def failed_files(found):
    return {row.artifact for row in found.failed}


def test_what_was_exported_agrees_with_the_network_at_every_lambda(bundle, trained):
    found = compare(bundle, trained)
    assert [row.artifact for row in found.rows] == [
        f"w{width}-fp32{suffix}.onnx" for width in ("0.50", "1.00") for suffix in ("", "-lambda1")
    ]
    assert found.failed == [] and found.not_run == ()
    for row in found.rows:
        assert row.passed is True and 0 <= row.max_abs_diff <= LIMIT == row.gate.limit
        assert (row.backend, row.device, row.precision) == ("onnxruntime-cpu", "cpu", "fp32")
        assert row.sha256 == find(bundle, row.artifact).sha256
        assert row.batch_sizes == (1, 5, 32) and "onnxruntime" in row.versions
        lambdas = tuple(one.lam for one in row.by_lambda)
        if row.pinned_lambda is None:
            assert lambdas == compared_lambdas(bundle.spec.lambdas) and row.num_pairs == 6 * 12
        else:
            assert lambdas == (1.0,) and row.num_pairs == 24  # of one λ four times the images
    assert found.reference.backend == "torch-cpu" and found.reference.reason is None
    assert found.settings["images"] == "clean images of the attack packs, seed 0"


def test_figures_are_those_of_the_files(bundle, trained):
    """Once more, with nothing but the network and the file."""
    row = row_of(compare(bundle, trained, num_samples=24), KNOB)
    images = read_packs(bundle)[0].images.astype(np.float32) / np.float32(255)
    lambdas = compared_lambdas(bundle.spec.lambdas)
    with open_artifact(bundle, find(bundle, KNOB)) as runner:
        got = expected_logits(runner.infer, images, lambdas)
    expected = expected_logits(network_logits(trained.network, 0.5), images, lambdas)
    assert row.max_abs_diff == pytest.approx(np.abs(got - expected).max(), rel=0.5)
    assert row.mean_abs_diff == pytest.approx(np.abs(got - expected).mean(), rel=0.2)


def test_the_report_is_plain_json(bundle, trained):
    value = compare(bundle, trained).to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["schema"] == "oat-edge/compare/1"
    assert {"environment", "settings", "bundle", "reference", "rows", "not_run"} < set(value)
    row = value["rows"][0]
    assert {
        "artifact", "sha256", "format", "backend", "device", "precision", "width", "pinned_lambda",
        "max_abs_diff", "mean_abs_diff", "argmax_agreement", "num_pairs", "gate", "passed",
        "by_lambda", "remarks",
    } <= set(row)  # fmt: skip
    assert row["gate"] == {"kind": "max_abs_diff", "limit": LIMIT, "max_relative_diff": None}
    assert row["by_lambda"][1]["lambda"] == 0.001
    assert value["bundle"]["checkpoint_sha256"] == value["reference"]["checkpoint_sha256"]


def test_one_weight_that_is_off_fails_its_file_alone(bundle, trained):
    found = compare(changed(bundle, KNOB, one_weight), trained)
    assert failed_files(found) == {KNOB}
    row = found.failed[0]
    assert row.max_abs_diff == pytest.approx(0.01, rel=0.05) and row.excess > 50


def test_lambda_that_counts_at_the_knots_only_is_found(bundle, trained):
    bundle = changed(bundle, KNOB, nearest_tenth)
    found = compare(bundle, trained)
    assert failed_files(found) == {KNOB}
    wrong = {one.lam for one in found.failed[0].by_lambda if one.max_abs_diff > LIMIT}
    assert wrong and not wrong & set(bundle.spec.lambdas)
    assert found.failed[0].worst_lambda in wrong
    # At the knots themselves it is right: only λ off them shows it.
    assert compare(bundle, trained, lambdas=bundle.spec.lambdas).failed == []


def test_one_lambda_for_the_whole_batch_is_found_though_each_lambda_alone_is_right(bundle, trained):
    bundle = changed(bundle, KNOB, first_lambda_for_all)
    images = read_packs(bundle)[0].images[:6].astype(np.float32) / np.float32(255)
    lambdas = compared_lambdas(bundle.spec.lambdas)
    with open_artifact(bundle, find(bundle, KNOB)) as runner:
        alone = expected_logits(runner.infer, images, lambdas)
    expected = expected_logits(network_logits(trained.network, 0.5), images, lambdas)
    np.testing.assert_allclose(alone, expected, atol=LIMIT)
    assert failed_files(compare(bundle, trained)) == {KNOB}
    # The file itself is the reference here, and still does not agree with it.
    assert failed_files(compare(bundle, None)) == {KNOB}


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("lam", [0.2, 0.7])
def test_logits_that_are_not_numbers_at_one_lambda_are_found(bundle, trained, lam, value):
    found = compare(changed(bundle, KNOB, broken_at(lam, value)), trained)
    assert failed_files(found) == {KNOB}
    row = found.failed[0]
    assert row.max_abs_diff is None is row.mean_abs_diff and row.num_not_finite == 6
    assert [one.lam for one in row.by_lambda if one.max_abs_diff is None] == [lam]
    assert row.worst_lambda == lam and row.excess == np.inf
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("with_torch", [True, False])
def test_a_forged_pinned_lambda_is_found(bundle, trained, with_torch):
    forged = dataclasses.replace(find(bundle, PINNED), pinned_lambda=0.0)
    found = compare(listed(bundle, forged), trained if with_torch else None)
    assert failed_files(found) == {PINNED}
    assert [one.lam for one in found.failed[0].by_lambda] == [0.0]


@pytest.mark.parametrize("with_torch", [True, False])
def test_half_precision_keeps_the_classes(bundle, trained, with_torch):
    bundle, half = in_half(bundle, KNOB)
    found = compare(bundle, trained if with_torch else None, num_samples=24)
    row = row_of(found, half)
    assert row.precision == "fp16-emulated" and row.gate.kind == "argmax_agreement"
    assert row.passed is True and row.num_pairs == 24 * 12
    assert row.max_abs_diff > 10 * row_of(found, KNOB).max_abs_diff  # it is half precision


def test_half_precision_with_other_classes_fails(bundle, trained):
    bundle, half = in_half(bundle, KNOB, other_classes)
    found = compare(bundle, trained)
    assert failed_files(found) == {half} and found.failed[0].argmax_agreement < 0.5


def test_half_precision_that_is_not_a_number_fails(bundle, trained):
    bundle, half = in_half(bundle, KNOB, broken_at(0.3, np.nan))
    assert failed_files(compare(bundle, trained)) == {half}


def test_logits_that_half_precision_does_not_explain_fail_though_classes_agree(bundle, trained):
    honest = row_of(compare(in_half(bundle, KNOB)[0], trained, num_samples=24), HALF)
    assert honest.passed is True and honest.failure is None and honest.relative_diff < 0.005
    bundle, half = in_half(bundle, KNOB, all_logits_higher)
    row = row_of(compare(bundle, trained, num_samples=24), half)
    assert row.passed is False and row.max_abs_diff > 0.9 and row.argmax_agreement == 1.0
    assert "half precision explains less than 2%" in row.failure


def test_too_few_pairs_for_the_gate_are_said(bundle, trained):
    bundle, half = in_half(bundle, PINNED)
    (remark,) = row_of(compare(bundle, trained), half).remarks
    assert "24 pairs are too few for 99.5%" in remark and "--samples" in remark


def test_without_torch_the_fp32_files_are_the_reference(bundle):
    found = compare(bundle, None)
    assert found.failed == [] and found.reference.backend == "onnxruntime-cpu"
    assert found.reference.reason == "torch is not installed"
    knob, pinned = row_of(found, KNOB), row_of(found, PINNED)
    assert "it is the reference itself" in knob.remarks[0] and pinned.remarks == ()
    assert knob.is_reference and knob.passed is None
    assert not pinned.is_reference and pinned.passed is True
    assert pinned.max_abs_diff > 0  # another graph than the one with λ as an input
    assert "onnxruntime" in found.reference.versions


def test_without_any_reference_the_remedy_is_said(bundle, trained):
    bundle, half = in_half(bundle, KNOB)
    alone = tuple(one for one in bundle.artifacts if one.file == half)
    bundle = dataclasses.replace(bundle, artifacts=alone)
    with pytest.raises(InputError, match=r"nothing to be compared with .*--checkpoint, or oat"):
        compare(bundle, None)
    assert compare(bundle, trained).failed == []


def engine(bundle, format="trt"):
    recipe = Recipe(format=format, precision="fp32", batches=(1, 4, 8))
    return Artifact(
        file=f"w0.50-fp32.{format}.engine", sha256="", format=format, width=0.5,
        precision_observed=None, source=KNOB, recipe=recipe.to_json(), deferred=True,
    )  # fmt: skip


def test_engines_on_a_cpu_are_listed_and_not_forgotten(bundle, trained):
    bundle = listed(bundle, engine(bundle))
    found = compare(bundle, trained, widths=(0.5,))
    (one,) = found.not_run
    assert (one.artifact, one.reason) == ("w0.50-fp32.trt.engine", "needs --device cuda")
    assert len(found.rows) == 2
    with pytest.raises(InputError, match="engines need --device cuda"):
        compare(bundle, trained, formats=("trt",))


@without_gpu
@pytest.mark.parametrize("formats", [("onnx",), ("trt",), None])
def test_a_gpu_that_is_not_there_is_an_error_and_nothing_is_left_out(bundle, trained, formats):
    said = []
    config = CompareConfig(device="cuda", num_samples=6, formats=formats)
    bundle = listed(bundle, engine(bundle))
    with pytest.raises(DependencyError):
        compare_bundle(
            bundle, config, checkpoint=trained, say=lambda text, share=0.0: said.append(text)
        )
    assert not any("onnxruntime-cpu" in text for text in said)  # nor after minutes of work


@on_gpu
def test_on_a_gpu_every_back_end_is_compared(bundle, trained):
    found = compare(bundle, trained, device="cuda", widths=(0.5,))
    assert [(row.artifact, row.device) for row in found.rows] == [
        (file, device) for file in (KNOB, PINNED) for device in ("cpu", "cuda")
    ]
    assert found.failed == []
    assert {row.gate.limit for row in found.rows} == {1e-4, 1e-3}


def test_only_what_was_chosen_is_compared(bundle, trained):
    bundle, half = in_half(bundle, KNOB)
    found = compare(bundle, trained, widths=(0.5,), precisions=("fp16",), lambdas=(0.25, 1.0))
    (row,) = found.rows
    assert row.artifact == half and [one.lam for one in row.by_lambda] == [0.25, 1.0]
    assert found.settings["widths"] == [0.5] and found.settings["lambdas"] == [0.25, 1.0]


def test_images_are_noise_where_there_are_no_packs_and_that_is_said(bundle, trained):
    bundle, half = in_half(bundle, KNOB)
    networks = tuple(one for one in bundle.artifacts if one.format != "attacks")
    bundle = dataclasses.replace(bundle, artifacts=networks)
    found = compare(bundle, trained, num_samples=3)
    assert found.settings["images"].startswith("uniform noise, seed 0")
    assert found.failed == [] and row_of(found, half).num_pairs == 36
