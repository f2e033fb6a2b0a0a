"""Exports with engines: deferred where none can be built, ahead of time where that works."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

from oat_edge.bundle import Bundle
from oat_edge.errors import BuildError, DependencyError, InputError
from oat_edge.exporters.config import ExportConfig
from oat_edge.exporters.export import export_bundle
from oat_edge.require import require
from oat_edge.runtime import open_artifact, open_runner
from oat_edge.runtime.recipe import Recipe
from tests.gpus import on_gpu

DEFERRED = Recipe(format="trt", precision="fp16")
AHEAD = Recipe(format="trt-rtx", precision="fp16", batches=(1, 2, 4))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_tensorrt(no_gpu):
    """For what a machine says that cannot build."""
    try:
        require("tensorrt", purpose="the test")
    except DependencyError:
        return
    pytest.skip("this machine has TensorRT")


def export(checkpoint, out, recipe, said=None, **changes):
    options = {"widths": (0.5,), "attack_samples": 0, "precision": recipe.precision} | changes
    config = ExportConfig(recipe=recipe, **options)
    say = lambda text, share=0.0: None if said is None or share else said.append(text)  # noqa: E731
    return export_bundle(checkpoint, config, out, dataset=None, say=say)


def test_a_half_precision_file_computes_what_the_network_does(checkpoint, tmp_path):
    config = ExportConfig(widths=(0.5, 1.0), precision="fp16", attack_samples=0)
    bundle = export_bundle(checkpoint, config, tmp_path / "b", dataset=None)
    assert [artifact.file for artifact in bundle.artifacts] == [
        "w0.50-fp16.onnx", "w0.50-fp16-lambda1.onnx", "w1.00-fp16.onnx", "w1.00-fp16-lambda1.onnx",
    ]  # fmt: skip
    for artifact in bundle.artifacts:
        assert artifact.precision_requested == artifact.precision_observed == "fp16"
        assert artifact.parity["argmax_agreement"] >= 0.995
        model = onnx.load(bundle.checked_path(artifact))
        facts = {entry.key: entry.value for entry in model.metadata_props}
        assert facts["oat_edge.precision"] == "fp16"
        with open_artifact(bundle, artifact) as runner:
            assert runner.precision != "fp32"


def test_without_tensorrt_an_engine_is_deferred_and_says_what_bench_will_do(
    checkpoint, tmp_path, no_tensorrt
):
    said = []
    bundle = export(checkpoint, tmp_path / "b", DEFERRED, said)
    (line,) = [text for text in said if "deferred" in text]
    assert "(tensorrt is not installed" in line and "\n" not in line and len(line) < 250
    assert "`oat-edge bench --device cuda` on the target builds them once" in line
    files = {artifact.file: artifact for artifact in Bundle.open(bundle.path).artifacts}
    assert set(files) == {
        "w0.50-fp16.onnx", "w0.50-fp16.engine",
        "w0.50-fp16-lambda1.onnx", "w0.50-fp16-lambda1.engine",
    }  # fmt: skip
    for name, artifact in files.items():
        assert (bundle.path / name).exists() != artifact.deferred
        if artifact.deferred:
            assert artifact.source == name.replace(".engine", ".onnx") in files
            assert Recipe.from_json(artifact.recipe) == DEFERRED
            assert artifact.sha256 == "" and artifact.device_key is None
            assert artifact.precision_observed is None and artifact.parity is None


def test_a_deferred_engine_is_no_file_that_loads(checkpoint, tmp_path, no_tensorrt):
    bundle = export(checkpoint, tmp_path / "b", DEFERRED)
    engine = bundle.select(format="trt", width=0.5)
    with pytest.raises(InputError, match=r"w0\.50-fp16\.engine is not built yet"):
        bundle.checked_path(engine)
    with pytest.raises(DependencyError):
        open_runner(bundle.path, device="cuda")
    with pytest.raises(InputError, match=r"no onnx file of width 0\.5 for cpu .*for GPUs"):
        open_runner(bundle.path)


def test_an_engine_that_is_wanted_now_is_an_error_before_any_work(
    checkpoint, tmp_path, no_tensorrt
):
    said = []
    with pytest.raises(DependencyError) as caught:
        export(checkpoint, tmp_path / "b", DEFERRED, said, defer=False)
    text = str(caught.value)
    assert "pip install 'oat-edge[trt]'" in text and "JetPack" in text and "\n" not in text
    assert said == [] and not (tmp_path / "b").exists()


def test_ahead_of_time_engines_are_built_here_and_checked(checkpoint, tmp_path):
    bundle = export(checkpoint, tmp_path / "b", AHEAD)
    engines = bundle.of_format("trt-rtx")
    assert [artifact.file for artifact in engines] == [
        "w0.50-fp16.rtx.engine", "w0.50-fp16-lambda1.rtx.engine",
    ]  # fmt: skip
    for artifact in engines:
        assert bundle.checked_path(artifact).stat().st_size > 10_000
        assert not artifact.deferred and "any GPU" in artifact.device_key
        assert artifact.device_key.startswith("tensorrt_rtx ")
        assert artifact.precision_observed == "fp16"
        assert "tensorrt_rtx" in artifact.versions


def test_an_engine_takes_the_place_of_its_deferred_entry(checkpoint, tmp_path, no_tensorrt):
    bundle = export(checkpoint, tmp_path / "b", DEFERRED)
    entry = bundle.select(format="trt", width=0.5)
    (bundle.path / entry.file).write_bytes(b"an engine")
    built = dataclasses.replace(entry, sha256="1" * 64, deferred=False, device_key="here")
    from oat_edge.bundle import add_artifacts

    facts = {"checkpoint_sha256": bundle.checkpoint_sha256, "spec": bundle.spec}
    later = add_artifacts(bundle.path, [built], run=bundle.run, **facts)
    assert later.select(format="trt", width=0.5) == built
    assert len(later.artifacts) == len(bundle.artifacts)


@pytest.mark.parametrize(
    "option", [{"refit": True}, {"version_compatible": True}], ids=lambda option: next(iter(option))
)
def test_what_rtx_cannot_build_without_a_gpu_leaves_the_bundle_as_it_was(
    option, checkpoint, tmp_path, no_gpu
):
    export(checkpoint, tmp_path / "b", AHEAD)
    before = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    with pytest.raises(BuildError) as caught:
        export(checkpoint, tmp_path / "b", dataclasses.replace(AHEAD, **option))
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before


def test_recipe_and_file_must_name_one_precision():
    with pytest.raises(InputError, match="the recipe says fp16, the ONNX file fp32"):
        ExportConfig(widths=(0.5,), recipe=DEFERRED, precision="fp32")


@on_gpu
@pytest.mark.parametrize("format", ["trt", "trt-rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu_every_engine_passes_parity(checkpoint, tmp_path, format, precision):
    try:
        bundle = export(checkpoint, tmp_path / "b", Recipe(format=format, precision=precision))
    except DependencyError as error:
        pytest.skip(str(error))
    for artifact in bundle.of_format(format):
        if artifact.deferred:
            pytest.skip(f"{format} is not installed")
        with open_artifact(bundle, artifact, device="cuda") as runner:
            lam = None if artifact.pinned_lambda is not None else np.float32([0, 0.3, 1])
            logits = runner.infer(np.full((3, 1, 8, 8), 0.5, np.float32), lam)
        assert runner.precision == precision and np.isfinite(logits).all()
