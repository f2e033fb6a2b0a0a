"""int8 files from a run to a bundle, and what a device makes of them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest

from oat_edge.calib.config import QuantizeConfig
from oat_edge.data import load
from oat_edge.errors import GateError, InputError
from oat_edge.exporters.config import ExportConfig
from oat_edge.exporters.export import export_bundle
from oat_edge.runtime import artifacts_for, open_artifact, open_runner
from oat_edge.runtime.recipe import Recipe
from oat_edge.train.checkpoint import load_checkpoint

SMALL = {"num_images": 120, "check_images": 100}


@pytest.fixture(scope="module")
def images():
    return load("digits", train_samples=600)


@pytest.fixture(scope="module")
def checkpoint(trained_run):
    return load_checkpoint(trained_run)


@pytest.fixture(scope="module")
def bundle(checkpoint, images, tmp_path_factory):
    """fp32, int8 for CPUs and int8 for TensorRT, one after the other into one bundle."""
    out = tmp_path_factory.mktemp("bundles") / "int8"
    common = {"widths": (1.0,), "attack_samples": 20, "floor": False}
    for target in (None, "cpu", "trt"):
        quantize = None if target is None else QuantizeConfig(target=target, **SMALL)
        precision = "fp32" if target is None else "int8"
        recipe = Recipe(precision="int8") if target == "trt" else None
        config = ExportConfig(precision=precision, quantize=quantize, recipe=recipe, **common)
        made = export_bundle(checkpoint, config, out, dataset=images)
    return made


def test_files_of_both_targets_lie_side_by_side(bundle):
    files = {artifact.file: artifact for artifact in bundle.artifacts}
    assert sorted(files) == [
        "attacks-w1.00-pgd20-int8.npz", "attacks-w1.00-pgd20.npz", "w1.00-fp32.onnx",
        "w1.00-int8-trt.engine", "w1.00-int8-trt.onnx", "w1.00-int8.onnx",
    ]  # fmt: skip
    assert {f: a.target for f, a in files.items() if a.precision_requested == "int8"} == {
        "w1.00-int8.onnx": "cpu", "w1.00-int8-trt.onnx": "trt", "w1.00-int8-trt.engine": "trt",
    }  # fmt: skip
    assert files["w1.00-int8-trt.engine"].deferred


@pytest.mark.parametrize("file", ["w1.00-int8.onnx", "w1.00-int8-trt.onnx"])
def test_the_file_says_what_it_is_and_the_manifest_how_it_came_about(bundle, file):
    (artifact,) = (one for one in bundle.artifacts if one.file == file)
    model = onnx.load(bundle.path / file)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["oat_edge.precision"] == "int8" and facts["oat_edge.target"] == artifact.target
    calibration = json.loads((bundle.path / "manifest.json").read_text())["artifacts"]
    (calibration,) = (one["calibration"] for one in calibration if one["file"] == file)
    assert facts["oat_edge.calibration_sha256"] == calibration["images"]["sha256"]
    assert calibration["images"]["split"] == "train"
    assert calibration["images"]["lambdas"] == [0.0, 1.0]
    assert calibration["images"]["num_adversarial"] == calibration["images"]["num_clean"] == 120
    assert [one["lam"] for one in calibration["accuracy"]["changes"]] == [0.0, 1.0]
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    quantized = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} < quantized
    # λ's own product with its table is a layer of no count.
    assert calibration["num_layers"] <= len(layers) <= calibration["num_layers"] + 1
    assert len(calibration["kept_in_float32"]) <= 2


def test_a_device_is_given_the_files_that_were_made_for_it(bundle):
    def names(device, **wanted):
        return [one.file for one in artifacts_for(bundle, (1.0,), device=device, **wanted)]

    assert names("cpu") == ["w1.00-fp32.onnx", "w1.00-int8.onnx"]
    assert names("cpu", precisions=("int8",)) == ["w1.00-int8.onnx"]
    assert names("cuda") == ["w1.00-int8-trt.engine"]
    assert names("cuda", formats=("onnx",)) == ["w1.00-fp32.onnx", "w1.00-int8-trt.onnx"]
    only_trt = [one for one in bundle.artifacts if one.target != "cpu"]
    without = dataclasses.replace(bundle, artifacts=tuple(only_trt))
    with pytest.raises(InputError, match=r"--precision int8 --target cpu"):
        artifacts_for(without, (1.0,), precisions=("int8",))


def test_an_application_gets_nearly_the_same_logits(bundle, images):
    x = images.test.images[:64].astype(np.float32) / np.float32(255)
    lam = np.resize(np.float32([0, 0.5, 1]), 64)
    with (
        open_runner(bundle.path, precision="fp32") as fp32,
        open_runner(bundle.path, precision="int8") as int8,
    ):
        assert int8.precision == "int8"
        expected, got = fp32.infer(x, lam), int8.infer(x, lam)
    assert 0 < np.abs(got - expected).max() < 0.1 * np.abs(expected).max()
    assert (got.argmax(1) == expected.argmax(1)).mean() > 0.95


def test_lambda_pinned_is_calibrated_at_its_own(checkpoint, images, tmp_path):
    quantize = QuantizeConfig(**SMALL)
    config = ExportConfig(
        widths=(1.0,), precision="int8", quantize=quantize, pin_lambda=0.3, attack_samples=0
    )
    (artifact,) = export_bundle(checkpoint, config, tmp_path / "b", dataset=images).artifacts
    assert artifact.file == "w1.00-int8-lambda0.3.onnx" and artifact.pinned_lambda == 0.3
    assert artifact.calibration["images"]["lambdas"] == [0.3]
    assert [one["lam"] for one in artifact.calibration["accuracy"]["changes"]] == [0.3]


def test_a_failed_gate_adds_nothing(checkpoint, images, tmp_path, monkeypatch):
    from oat_edge.calib import quantize as module

    def refuse(self, ranked, tried):
        raise self._too_much((3.0, "SA", 1.0), tried(())[1], ())

    monkeypatch.setattr(module.Changes, "beyond", lambda self, points: (3.0, "SA", 1.0))
    monkeypatch.setattr(module._Work, "_keep", refuse)
    config = ExportConfig(
        widths=(1.0,), precision="int8", quantize=QuantizeConfig(**SMALL), attack_samples=0
    )
    with pytest.raises(GateError, match=r"int8 costs 3\.00 points of SA at λ=1 \(on 100 images\)"):
        export_bundle(checkpoint, config, tmp_path / "b", dataset=images)
    left = [path.name for path in (tmp_path / "b").iterdir()]
    assert left == [".lock"]


def test_int8_without_images_is_refused(checkpoint, tmp_path):
    config = ExportConfig(
        widths=(1.0,), precision="int8", quantize=QuantizeConfig(), attack_samples=0
    )
    with pytest.raises(InputError, match="int8 needs images to calibrate with"):
        export_bundle(checkpoint, config, tmp_path / "b", dataset=None)


def test_a_second_export_makes_no_pack_of_the_same_file_again(bundle, checkpoint, images):
    config = ExportConfig(
        widths=(1.0,), precision="int8", attack_samples=20, floor=False,
        quantize=QuantizeConfig(target="trt", **SMALL), recipe=Recipe(precision="int8"),
    )  # fmt: skip
    said: list[str] = []
    again = export_bundle(
        checkpoint,
        config,
        bundle.path,
        dataset=images,
        say=lambda text, share=0.0: said.append(text),
    )
    assert "width 1: attack pack of w1.00-int8-trt.onnx is there already" in said
    hashes = {one.file: one.sha256 for one in bundle.artifacts}
    assert {one.file: one.sha256 for one in again.artifacts} == hashes
    with open_artifact(again, again.select(format="onnx", precision="int8")) as runner:
        assert runner.precision == "int8"
