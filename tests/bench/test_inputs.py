"""What is refused before anything is measured."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from oat_edge.bench.inputs import check_device, check_libraries, files_to_measure, fit_batches
from oat_edge.bundle import Artifact, Bundle, add_artifacts
from oat_edge.device.system import System
from oat_edge.errors import DependencyError, InputError
from oat_edge.runtime.recipe import Recipe
from tests.bench.conftest import CHECKPOINT, QUICKEST, SPEC
from tests.packages import need_rtx


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


@pytest.fixture
def with_engines(bare_bundle):
    """Adds deferred engines of width 0.5 that take so many images: fewest, usual, most."""

    def add(*ranges, format="trt", name=""):
        artifacts = [
            Artifact(
                file=f"w0.50-{name}{index}.engine",
                sha256="",
                format=format,
                width=0.5,
                precision_requested="fp16",
                precision_observed=None,
                source="w0.50-fp32.onnx",
                recipe=Recipe(format=format, precision="fp16", batches=batches).to_json(),
                deferred=True,
            )
            for index, batches in enumerate(ranges)
        ]
        facts = {"run": bare_bundle.run, "checkpoint_sha256": CHECKPOINT, "spec": SPEC}
        add_artifacts(bare_bundle.path, artifacts, **facts)
        return Bundle.open(bare_bundle.path)

    return add


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
    ("model", "found"),
    [(None, "no Jetson board"), ("Raspberry Pi 5\0", "board 'Raspberry Pi 5'")],
)
@pytest.mark.parametrize("on_gpu", [True, False])
def test_what_is_no_jetson_is_told_with_the_ways_to_one(tmp_path, model, found, on_gpu):
    if model is not None:
        (tmp_path / BOARD).parent.mkdir(parents=True)
        (tmp_path / BOARD).write_text(model)
    match = rf"detected: .*{found}\).*--host .*devices add"
    with pytest.raises(DependencyError, match=match):
        check_device("jetson", on_gpu=on_gpu, system=System(tmp_path))


def test_a_jetson_is_its_gpu_or_by_name_its_cpu(no_gpu):
    orin = System(Path(__file__).parents[1] / "device/trees/orin-nano")
    check_device("jetson", on_gpu=False, system=orin)
    with pytest.raises(DependencyError, match="--processor cpu"):
        check_device("jetson", on_gpu=True, system=orin)


def test_a_cpu_is_always_there(tmp_path):
    check_device("cpu", system=System(tmp_path))


def test_cuda_needs_a_gpu(no_gpu):
    with pytest.raises(DependencyError, match="GPU"):
        check_device("cuda")


def test_named_batches_are_never_moved_and_the_remedy_names_no_batch_twice(with_engines):
    bundle = with_engines((8, 8, 8))
    match = r"takes 8 images per request; bench --batch 8, or export again"
    with pytest.raises(InputError, match=match):
        files(bundle, (0.5,), device="cuda", batches=(1, 16))


@pytest.mark.parametrize(
    ("ranges", "batches"),
    [
        ([(1, 8, 32)], (1, 16)),
        ([(8, 8, 8)], (8,)),
        ([(2, 4, 8)], (2, 8)),
        ([(1, 4, 8)], (1, 8)),
        ([(2, 4, 64)], (2, 16)),
        ([(1, 4, 12), (4, 8, 32)], (4, 12)),
        ([(1, 1, 1)], (1,)),
    ],
)
def test_batches_that_nobody_named_are_moved_into_what_all_engines_take(
    with_engines, ranges, batches
):
    bundle, usual = with_engines(*ranges), config(device="cuda", batches=(1, 16))
    fitting, told = fit_batches(bundle, (0.5,), usual)
    assert fitting == dataclasses.replace(usual, batches=batches)
    assert files_to_measure(bundle, (0.5,), fitting)  # every engine takes them
    if batches == (1, 16):
        assert told is None
    else:
        assert told.startswith(f"batch {','.join(map(str, batches))} instead of 1,16: w0.50-")
        assert "\n" not in told and len(told) <= 100


def test_onnx_files_and_cpus_take_any_batch(with_engines):
    bundle = with_engines((8, 8, 8))
    for changes in ({"device": "cuda", "formats": ("onnx",)}, {"device": "cpu"}):
        usual = config(batches=(1, 16), **changes)
        assert fit_batches(bundle, (0.5,), usual) == (usual, None)
    usual = config(batches=(1, 16), device="cuda")
    assert fit_batches(bundle, (1.0,), usual) == (usual, None)  # this width has no engine


def test_engines_without_a_batch_in_common_are_to_be_chosen_from(with_engines):
    match = r"no batch suits both w0\.50-1\.engine \(16 images\) and w0\.50-0\.engine \(1 image\)"
    with pytest.raises(InputError, match=match) as error:
        fit_batches(with_engines((1, 1, 1), (16, 16, 16)), (0.5,), config(device="cuda"))
    assert "--format" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_library_names_the_formats_that_can_be_measured(with_engines):
    """TensorRT is not installed here, TensorRT-RTX is: no device is needed to see that."""
    need_rtx()
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed")
    bundle = with_engines((1, 8, 32), format="trt")
    both = with_engines((1, 8, 32), format="trt-rtx", name="rtx")
    chosen = [a for a in both.artifacts if a.format in ("trt", "trt-rtx")]
    assert len(chosen) == 2
    with pytest.raises(DependencyError, match="tensorrt is not installed") as error:
        check_libraries(both, chosen)
    assert str(error.value).endswith("; or measure what runs here: bench --format trt-rtx")
    assert error.value.exit_code == 3 and "\n" not in str(error.value)
    check_libraries(both, [a for a in chosen if a.format == "trt-rtx"])
    # ONNX files do not run on a GPU with the onnxruntime that is installed here: no hint.
    with pytest.raises(DependencyError, match="tensorrt is not installed") as error:
        check_libraries(bundle, [a for a in bundle.artifacts if a.format == "trt"])
    assert "bench --format" not in str(error.value)
