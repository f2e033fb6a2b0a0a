"""Engines as runners. What a GPU is needed for runs where there is one, against ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from oat_edge.errors import DependencyError, FallbackError
from oat_edge.runtime import trt_api
from oat_edge.runtime.recipe import LIBRARIES, Recipe
from oat_edge.runtime.runner import RunnerIO
from oat_edge.runtime.trt import TrtRunner, observe
from oat_edge.runtime.trt_engine import _profiler
from tests.gpus import without_gpu
from tests.packages import need_rtx

IO = RunnerIO(image_shape=(1, 8, 8), num_classes=10, lambdas=(0.0, 0.1, 0.2, 0.3, 0.4, 1.0))


@without_gpu
@pytest.mark.parametrize("format", sorted(LIBRARIES))
def test_without_a_driver_nothing_else_is_looked_at(format, tmp_path):
    """Not the file, which is not there, nor the library: its runtime would crash the process."""
    with pytest.raises(DependencyError, match="GPU") as caught:
        TrtRunner(tmp_path / "no.engine", IO, recipe=Recipe(format=format))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3


@without_gpu
def test_without_a_driver_the_library_is_not_even_imported(child_environment, tmp_path):
    code = f"""
import sys
from pathlib import Path
from oat_edge.errors import DependencyError
from oat_edge.runtime.recipe import Recipe
from oat_edge.runtime.runner import RunnerIO
from oat_edge.runtime.trt import TrtRunner
io = RunnerIO(image_shape=(1, 8, 8), num_classes=10, lambdas=(0.0, 1.0))
path = Path({str(tmp_path)!r}) / "garbage.engine"
path.write_bytes(b"x" * 1000)
try:
    TrtRunner(path, io, recipe=Recipe(format="trt-rtx"))
except DependencyError:
    print(sorted({{"torch", "onnx", "tensorrt", "tensorrt_rtx"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("content", [b"", b"x" * 1000, b"ftrt" + bytes(5000)])
def test_a_file_that_is_no_engine_is_one_line_with_the_library_s_reason(
    content, tmp_path, child_environment
):
    """In a child, as the library may crash without a driver."""
    need_rtx()
    path = tmp_path / "bad.engine"
    path.write_bytes(content)
    code = f"""
from pathlib import Path
from oat_edge.errors import InputError
from oat_edge.runtime import trt_api
from oat_edge.runtime.trt_engine import LoadedEngine
try:
    LoadedEngine(trt_api.load("trt-rtx"), Path({str(path)!r}))
except InputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "bad.engine does not load in tensorrt_rtx" in line and "export again" in line
    assert "Error Code" in line and "catchCudaError" not in line


def inspected(*layers):
    """The JSON of TensorRT 10's inspector for these (name, kind, type)."""
    tensor = {"Name": "t", "Dimensions": [1, 4, 8, 8]}
    content = [
        {
            "Name": name,
            "LayerType": kind,
            "Inputs": [tensor | {"Format/Datatype": f"Row major linear {type} format"}],
            "Outputs": [tensor | {"Format/Datatype": f"Row major linear {type} format"}],
            "TacticName": "",
            "Metadata": f"[ONNX Layer: {name}]",
        }
        for name, kind, type in layers
    ]
    return json.dumps({"Layers": content, "Bindings": []})


def test_an_engine_that_computes_as_asked_carries_no_remark():
    text = inspected(("conv_a", "CaskConvolution", "FP16"), ("conv_b", "CaskConvolution", "FP16"))
    seen = observe(text, "fp16", what="x.engine")
    assert seen.convolutions == {"fp16": 2} and seen.remarks == ()
    assert seen.kinds["conv_a"] == "CaskConvolution"


def test_a_float32_classifier_that_runs_as_a_convolution_is_none():
    """Classic TensorRT does that to matrix products, and ours stay in float32."""
    head = ("node_linear", "CaskGemmConvolution", "FP32")
    text = inspected(("conv_a", "CaskConvolution", "FP16"), head)
    seen = observe(text, "fp16", what="x.engine")
    assert seen.convolutions == {"fp16": 1} and seen.remarks == ()


def test_an_engine_that_computes_in_another_precision_is_refused():
    text = inspected(("conv_a", "CaskConvolution", "FP16"), ("conv_b", "CaskConvolution", "FP32"))
    with pytest.raises(
        FallbackError, match=r"x\.engine was asked for in fp16.*1 in fp32"
    ) as caught:
        observe(text, "fp16", what="x.engine")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (inspected(("{ForeignNode[conv_a]}", "Myelin", "FP16")), "does not tell"),
        ('{"Layers": ["conv_a", "conv_b"]}', "only names"),
        ("no JSON", "list of layers"),
        ("", "list of layers"),
    ],
)
def test_what_the_library_does_not_tell_is_said_with_every_figure(text, reason):
    seen = observe(text, "fp16", what="x.engine")
    (remark,) = seen.remarks
    assert remark.startswith("precision: ") and reason in remark and "\n" not in remark


def test_an_opaque_part_does_not_hide_a_wrong_one():
    text = inspected(("{ForeignNode[conv_a]}", "Myelin", "FP16"), ("conv_b", "Convolution", "FP32"))
    with pytest.raises(FallbackError):
        observe(text, "fp16", what="x.engine")


def test_times_of_layers_add_up_in_the_order_of_running():
    need_rtx()
    total = {}
    profiler = _profiler(trt_api.load("trt-rtx"), total)
    for _ in range(2):
        profiler.report_layer_time("second to none", 1.5)
        profiler.report_layer_time("a later one", 0.25)
    assert list(total.items()) == [("second to none", 3.0), ("a later one", 0.5)]
