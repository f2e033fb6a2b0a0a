"""Every TensorRT name in the code exists in the bindings of every version that is supported."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from oat_edge.runtime.trt_api import Library
from tests.packages import unpacked
from tests.runtime.trt_names import describe, missing_names, used_names


@pytest.fixture(scope="module")
def described_rtx(rtx):
    return describe("tensorrt_rtx")


def test_every_name_that_is_used_exists_in_tensorrt_rtx(described_rtx):
    assert missing_names(described_rtx, used_names(described_rtx, rtx=True)) == []


def test_the_names_are_found(described_rtx):
    """Some of each module, by each way in which a name can be reached."""
    used = used_names(described_rtx, rtx=True)
    assert len(used) > 60
    assert {
        ("", "Builder"),
        ("ILogger", "log"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("Runtime", "engine_host_code_allowed"),
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "get_tensor_profile_shape"),
        ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
        ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
        ("EngineInspector", "execution_context"),
        ("IExecutionContext", "set_tensor_address"),
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "profiler"),
        ("IProfiler", "report_layer_time"),
        ("IProgressMonitor", "step_complete"),
        ("IBuilderConfig", "set_timing_cache"),
        ("INetworkDefinition", "get_input"),
        ("ITensor", "name"),
        ("ILayer", "get_output"),
    } <= {(owner, name) for owners, name in used for owner in owners}


@pytest.mark.parametrize(
    "misspelt",
    [
        "api.Bulider(logger)",
        "context = engine.create_execution_context(); context.execute_async_v4(stream)",
        "for index in range(engine.number_io_tensors): pass",
        "tensors = [network.get_input(i) for i in range(2)]\nfor tensor in tensors: tensor.nam",
        "config = builder.create_builder_config()\nconfig.profiling_verbositi = 1",
        "class P(api.IProfiler):\n    def report_layer_times(self, name, ms): pass",
        "api.DataType.FLOAT23",
    ],
)
def test_a_misspelt_name_is_found(misspelt, described_rtx):
    start = """
builder = api.Builder(logger)
network = builder.create_network(0)
self._engine = api.Runtime(logger).deserialize_cuda_engine(plan)
"""
    good = used_names(described_rtx, sources=[start])
    assert missing_names(described_rtx, good) == []
    bad = used_names(described_rtx, sources=[f"{start}{misspelt}\n"])
    assert len(missing_names(described_rtx, bad)) == 1


# TensorRT's bindings are in the package index, its libraries are not: three empty ones stand for
# them, which is enough to import the bindings and to ask what names they have.
STUB = "\n".join(
    f"void *{name}(void) {{ return 0; }}"
    for name in (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
        "initLibNvInferPlugins",
    )
)


@pytest.fixture(scope="module", params=["10.3.0", "10.16.1.11", "11.4.0.106"])
def described_trt(request, tmp_path_factory):
    """What the real bindings of a version of TensorRT offer."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile the libraries that the bindings want")
    version, folder = request.param, tmp_path_factory.mktemp("bindings")
    package = f"tensorrt-cu12-bindings=={version}"
    unpacked(package, folder)
    source = folder / "stub.c"
    source.write_text(STUB)
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = f"lib{name}.so.{version.partition('.')[0]}"
        command = [
            "gcc",
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{library}",
            "-o",
            folder / library,
            source,
        ]
        subprocess.run(command, check=True, capture_output=True)
    paths = {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder)}
    described = describe("tensorrt_bindings", **paths)
    assert described["version"] == version
    return described


@pytest.mark.slow
def test_every_name_that_is_used_exists_in_tensorrt(described_trt):
    used = used_names(described_trt)
    assert len(used) > 60
    assert missing_names(described_trt, used) == []


@pytest.mark.slow
def test_what_is_said_of_versions_is_so(described_trt):
    """The differences that `trt_api` takes care of are those of the bindings."""
    library = Library("trt", None, described_trt["version"])
    weak = {"FP16", "INT8"} <= set(described_trt["classes"]["BuilderFlag"])
    flags = described_trt["classes"]["NetworkDefinitionCreationFlag"]
    assert weak or not library.may_be_weak
    assert weak == ("EXPLICIT_BATCH" in flags) == library.version.startswith("10.")
    assert "STRONGLY_TYPED" in flags
    assert re.match(r"1[01]\.", library.version)
    assert "DynamicShapesKernelSpecializationStrategy" not in described_trt["top"]
