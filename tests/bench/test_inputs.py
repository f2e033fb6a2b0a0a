"""What is refused before anything is measured."""

from __future__ import annotations

import dataclasses

import pytest

from oat_edge.bench.inputs import check_device, files_to_measure
from oat_edge.bundle import Artifact, Bundle, add_artifacts
from oat_edge.errors import DependencyError, InputError
from oat_edge.runtime.recipe import Recipe
from tests.bench.conftest import CHECKPOINT, QUICKEST, SPEC


@pytest.fixture
def with_engine(bare_bundle):
    """The bundle with a deferred engine of width 0.5 that takes 2 to 8 images."""
    artifact = Artifact(
        file="w0.50-fp16.engine",
        sha256="",
        format="trt",
        width=0.5,
        precision_requested="fp16",
        precision_observed=None,
        source="w0.50-fp32.onnx",
        recipe=Recipe(precision="fp16", batches=(2, 4, 8)).to_json(),
        deferred=True,
    )
    facts = {"run": bare_bundle.run, "checkpoint_sha256": CHECKPOINT, "spec": SPEC}
    add_artifacts(bare_bundle.path, [artifact], **facts)
    return Bundle.open(bare_bundle.path)


def config(**changes):
    return dataclasses.replace(QUICKEST, **changes)


def files(bundle, widths, **changes):
    return [artifact.file for artifact in files_to_measure(bundle, widths, config(**changes))]


def test_each_device_has_the_files_that_suit_it(with_engine):
    onnx = ["w0.50-fp32.onnx", "w0.50-lam0.3-fp32.onnx"]
    assert files(with_engine, (0.5,)) == onnx
    assert files(with_engine, (0.5,), device="cuda", batches=(4,)) == ["w0.50-fp16.engine"]
    assert files(with_engine, (1.0,), device="cuda") == ["w1.00-fp32.onnx"]
    assert files(with_engine, (0.5,), device="cuda", formats=("onnx",)) == onnx
    assert files(with_engine, (0.5,), device="cuda", precisions=("fp32",)) == onnx


@pytest.mark.parametrize("batches", [(1,), (4, 9), (1, 2, 8)])
def test_batches_outside_the_profile_of_an_engine_are_refused(with_engine, batches):
    match = r"batch is (1|9): engine w0\.50-fp16\.engine takes 2 to 8 images .*--batch"
    with pytest.raises(InputError, match=match) as error:
        files(with_engine, (0.5,), device="cuda", batches=batches)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("batches", [(2,), (2, 5, 8)])
def test_batches_inside_the_profile_are_taken(with_engine, batches):
    assert files(with_engine, (0.5,), device="cuda", batches=batches) == ["w0.50-fp16.engine"]


def test_an_engine_does_not_run_on_a_cpu(with_engine):
    with pytest.raises(InputError, match=r"w0\.50-fp16\.engine is a trt engine.*--device cuda"):
        files(with_engine, (0.5,), formats=("trt",), precisions=("fp16",), batches=(4,))


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"formats": ("tensorrt",)}, "format is"), ({"precisions": ("half",)}, "precision is")],
)
def test_names_that_do_not_exist_are_refused_with_the_choices(with_engine, changes, match):
    with pytest.raises(InputError, match=match):
        files(with_engine, (0.5,), **changes)


BOARD = "proc/device-tree/model"


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        (None, "no Jetson board.*use --device cpu or cuda"),
        ("NVIDIA Jetson Orin Nano\0", "board 'NVIDIA Jetson Orin Nano'.*--device cuda runs"),
        ("Raspberry Pi 5\0", "board 'Raspberry Pi 5'.*use --device cpu or cuda"),
    ],
)
def test_jetson_says_what_was_detected_and_what_runs_its_gpu(tmp_path, model, remedy):
    if model is not None:
        (tmp_path / BOARD).parent.mkdir(parents=True)
        (tmp_path / BOARD).write_text(model)
    with pytest.raises(DependencyError, match=remedy):
        check_device("jetson", sysroot=tmp_path)


def test_a_cpu_is_always_there(tmp_path):
    check_device("cpu", sysroot=tmp_path)


def test_cuda_needs_a_gpu(no_gpu):
    with pytest.raises(DependencyError, match="GPU"):
        check_device("cuda")
