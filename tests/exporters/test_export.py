from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from oat_edge.bundle import MANIFEST, Bundle
from oat_edge.calib.config import QuantizeConfig
from oat_edge.errors import GateError, InputError
from oat_edge.evaluation.pack import AttackPack
from oat_edge.exporters.config import ExportConfig
from oat_edge.exporters.export import export_bundle
from oat_edge.files import point_latest
from oat_edge.nn.fold import fold
from oat_edge.runtime import open_artifact, open_runner
from oat_edge.runtime.recipe import Recipe
from oat_edge.train.checkpoint import load_checkpoint

PLAIN = {"floor": False, "attack_samples": 0}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def export(checkpoint, out, dataset=None, **changes):
    config = ExportConfig(**{"widths": (0.5,), **PLAIN, **changes})
    return export_bundle(checkpoint, config, out, dataset=dataset)


def test_a_bundle_holds_what_was_asked_for_under_the_names_of_the_design(tiny_bundle, tiny_run):
    expected = {
        f"{stem}.{suffix}"
        for width in ("0.50", "1.00")
        for stem, suffix in (
            (f"w{width}-fp32", "onnx"),
            (f"w{width}-fp32-lambda1", "onnx"),
            (f"attacks-w{width}-pgd20", "npz"),
        )
    }
    assert {artifact.file for artifact in tiny_bundle.artifacts} == expected
    assert set(names(tiny_bundle.path)) - {".lock", MANIFEST, "report.json"} == expected
    assert (tiny_bundle.path.parent / "latest").resolve() == tiny_bundle.path.resolve()
    checkpoint = load_checkpoint(tiny_run)
    opened = Bundle.open(tiny_bundle.path)
    assert (opened.run, opened.spec) == ("tiny", checkpoint.spec)
    assert opened.checkpoint_sha256 == checkpoint.sha256
    for artifact in opened.artifacts:
        assert opened.checked_path(artifact).is_file()


def test_every_network_of_a_bundle_passed_parity_and_says_what_made_it(tiny_bundle):
    for artifact in tiny_bundle.of_format("onnx"):
        assert 0 <= artifact.parity["max_abs_diff"] <= artifact.parity["tolerance"] == 1e-4
        assert artifact.parity["num_images"] > 0
        assert {"oat-edge", "torch", "onnx", "onnxruntime", "opset"} <= set(artifact.versions)
        assert artifact.precision_requested == artifact.precision_observed == "fp32"


def test_packs_hold_test_images_that_fool_more_than_they_should(tiny_bundle, tiny_run, digits):
    packs = [AttackPack.load(tiny_bundle.checked_path(a)) for a in tiny_bundle.of_format("attacks")]
    assert [pack.width for pack in packs] == [0.5, 1.0]
    for pack in packs:
        assert pack.lambdas == tiny_bundle.spec.lambdas and pack.eps == tiny_bundle.spec.eps
        assert len(pack.images) == 24 and len(set(pack.indices.tolist())) == 24
        np.testing.assert_array_equal(pack.images, digits.test.images[pack.indices])
        np.testing.assert_array_equal(pack.labels, digits.test.labels[pack.indices])
        assert pack.checkpoint_sha256 == tiny_bundle.checkpoint_sha256
    np.testing.assert_array_equal(packs[0].indices, packs[1].indices)


def test_packs_without_data_are_refused_before_anything_is_written(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"--attack-samples 0"):
        export(checkpoint, tmp_path / "b", attack_samples=8)
    assert names(tmp_path) == []


@pytest.mark.parametrize("lam", [0.7])  # the floor of every export is pinned at a knot
def test_a_pin_is_the_network_at_that_lambda(lam, checkpoint, tmp_path):
    bundle = export(checkpoint, tmp_path / "b", pin_lambda=lam)
    (artifact,) = bundle.artifacts
    assert artifact.file == f"w0.50-fp32-lambda{lam:g}.onnx" and artifact.pinned_lambda == lam
    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    with torch.no_grad(), open_runner(bundle.path, 0.5, pinned_lambda=lam) as runner:
        expected = checkpoint.network(torch.from_numpy(images), torch.full((3,), lam), 0.5)
        np.testing.assert_allclose(runner.infer(images), expected.numpy(), atol=1e-4)


def test_the_floor_is_pinned_at_the_largest_lambda():
    config = ExportConfig(widths=(1.0,))
    assert config.pins((0.0, 0.5, 1.0)) == (None, 1.0)
    assert config.pins((0.3,)) == (None, 0.3)
    assert dataclasses.replace(config, floor=False).pins((0.0, 1.0)) == (None,)
    assert dataclasses.replace(config, pin_lambda=0.2).pins((0.0, 1.0)) == (0.2,)


@pytest.mark.parametrize("lam", [0.0])
def test_a_dedicated_run_exports_with_and_without_its_lambda(lam, make_checkpoint, tmp_path):
    dedicated = make_checkpoint(lambdas=(lam,), widths=(1.0,))
    bundle = export(dedicated, tmp_path / "b", widths=(1.0,), floor=True)
    assert [a.pinned_lambda for a in bundle.artifacts] == [None, lam]
    images = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    knob, pinned = (open_artifact(bundle, artifact) for artifact in bundle.artifacts)
    with knob, pinned:
        expected = dedicated.network(torch.from_numpy(images), torch.full((2,), lam))
        for logits in (knob.infer(images, lam), pinned.infer(images)):
            np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-4)
    with pytest.raises(InputError, match=r"pin_lambda is 0\.5"):
        export(dedicated, tmp_path / "b", widths=(1.0,), pin_lambda=0.5)


@pytest.mark.parametrize(("arch", "size"), [("wrn-10-1", 8), ("mobilenet-v2", 16)])
def test_other_architectures_export_too(arch, size, make_checkpoint, tmp_path):
    other = make_checkpoint(arch, (3, size, size), widths=(0.5, 1.0))
    bundle = export(other, tmp_path / "b", floor=arch == "wrn-10-1")
    for artifact in bundle.artifacts:
        assert artifact.parity["max_abs_diff"] <= 1e-4
        with open_artifact(bundle, artifact) as runner:
            assert runner.infer(np.zeros((2, 3, size, size), np.float32), 1.0).shape == (2, 10)


def test_widths_that_look_alike_get_files_of_their_own_and_no_data_is_needed(
    make_checkpoint, tmp_path
):
    """Both are 0.51 to two digits, and both take 16 of 32 channels."""
    widths, steps = (0.5091, 0.5123, 1.0), []
    config = ExportConfig(widths=widths[:2], **PLAIN)
    bundle = export_bundle(
        make_checkpoint(widths=widths), config, tmp_path / "b", dataset=None, say=steps.append
    )
    assert [a.file for a in bundle.artifacts] == ["w0.5091-fp32.onnx", "w0.5123-fp32.onnx"]
    assert steps == [
        "width 0.5091: onnx, fp32, λ input",
        "width 0.5123: onnx, fp32, λ input",
    ]
    for artifact in bundle.artifacts:
        assert bundle.checked_path(artifact).is_file()


@pytest.fixture
def filled(half_bundle, tmp_path):
    """A bundle of one file, and its folder's content."""
    bundle = dataclasses.replace(half_bundle, path=tmp_path / "b")
    shutil.copytree(half_bundle.path, bundle.path)
    return bundle, {path.name: path.read_bytes() for path in bundle.path.iterdir()}


def unchanged(filled):
    bundle, before = filled
    return {path.name: path.read_bytes() for path in bundle.path.iterdir()} == before


def test_a_failed_parity_at_any_width_leaves_the_bundle_as_it_was(
    filled, checkpoint, make_checkpoint
):
    """One weight that only the full width uses is no number: half the width passes."""
    network = make_checkpoint().network
    network.get_parameter("backbone.net.conv1.weight").data[-1] = float("nan")
    broken = dataclasses.replace(checkpoint, network=network)
    steps = []
    config = ExportConfig(widths=(0.5, 1.0), **PLAIN)
    with pytest.raises(GateError, match=r"width 1 .*nothing was added to the bundle"):
        export_bundle(broken, config, filled[0].path, dataset=None, say=steps.append)
    assert len(steps) == 2 and unchanged(filled)


def test_a_width_that_was_not_trained_is_refused(filled, checkpoint):
    with pytest.raises(InputError, match=r"width is 0\.6"):
        export(checkpoint, filled[0].path, widths=(0.6,))
    assert unchanged(filled)


def test_another_checkpoint_is_refused_before_any_work_and_replaces_on_request(filled, another):
    steps = []
    config = ExportConfig(widths=(1.0,), **PLAIN)
    with pytest.raises(InputError, match=r"holds artifacts of checkpoint cccccccccccc.*--replace"):
        export_bundle(another, config, filled[0].path, dataset=None, say=steps.append)
    assert steps == [] and unchanged(filled)
    bundle = export(another, filled[0].path, widths=(1.0,), replace=True)
    assert names(bundle.path) == [".lock", MANIFEST, "w1.00-fp32.onnx"]
    assert Bundle.open(bundle.path).run == "another"


def test_exporting_by_the_name_latest_adds_to_that_bundle(filled, checkpoint):
    folder = filled[0].path
    point_latest(folder)
    export(checkpoint, folder.parent / "latest", pin_lambda=1.0)
    assert names(folder) == [
        ".lock", MANIFEST, "w0.50-fp32-lambda1.onnx", "w0.50-fp32.onnx",
    ]  # fmt: skip
    assert (folder.parent / "latest").resolve() == folder.resolve()


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"precision": "int4"}, "precision is 'int4': expected fp32, fp16, int8"),
        ({"precision": "int8"}, "quantize is None, precision is int8"),
        ({"quantize": QuantizeConfig()}, "precision is fp32"),
        (
            {
                "precision": "int8",
                "quantize": QuantizeConfig(target="cpu"),
                "recipe": Recipe(precision="int8"),
            },
            "target is 'cpu': engines take trt",
        ),
        ({"pin_lambda": 1.5}, "pin_lambda is 1.5"),
        ({"pin_lambda": float("nan")}, "pin_lambda is nan"),
        ({"attack_samples": -1}, "attack_samples is -1"),
        ({"attack": "pgd"}, "attack is 'pgd': expected pgd20, apgd, autoattack"),
        ({"attack": "square"}, "attack is 'square': expected pgd20, apgd, autoattack"),
        ({"seed": -1}, "seed is -1"),
        ({"widths": ()}, "widths"),
    ],
)
def test_a_config_that_cannot_be_met_is_refused(changes, pattern):
    with pytest.raises(InputError, match=pattern):
        ExportConfig(**{"widths": (1.0,), **changes})


def test_what_is_exported_is_the_folded_network(filled, checkpoint):
    images = np.random.default_rng(3).random((4, 1, 8, 8), dtype=np.float32)
    lam = np.array([0, 0.1, 0.25, 1], dtype=np.float32)
    folded = fold(checkpoint.network, 0.5)
    with torch.no_grad(), open_runner(filled[0].path) as runner:
        expected = folded(torch.from_numpy(images), torch.from_numpy(lam)).numpy()
        np.testing.assert_allclose(runner.infer(images, lam), expected, atol=1e-4)
