"""Versions of TensorRT: TensorRT-RTX itself, and the real bindings of the others in children."""

from __future__ import annotations

import json
import subprocess
import sys

import onnx
import pytest

from oat_edge.errors import DependencyError
from oat_edge.runtime import trt_api
from oat_edge.runtime.recipe import LIBRARIES
from oat_edge.runtime.trt_api import Library
from tests.gpus import without_gpu

# --- loading ------------------------------------------------------------------------------------


def test_the_library_of_a_format_is_loaded_and_named(rtx):
    import tensorrt_rtx

    assert rtx.api is tensorrt_rtx and rtx.version == tensorrt_rtx.__version__
    assert rtx.format == "trt-rtx" and rtx.name == f"tensorrt_rtx {tensorrt_rtx.__version__}"


@pytest.mark.parametrize("format", sorted(LIBRARIES))
def test_a_library_that_is_not_there_is_one_line_on_how_to_get_it(format, child_environment):
    code = f"""
import sys
sys.modules[{LIBRARIES[format]!r}] = None  # as if it were not installed
from oat_edge.errors import DependencyError
from oat_edge.runtime.trt_api import load
try:
    load({format!r})
except DependencyError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment, capture_output=True, text=True
    )
    (line,) = done.stdout.splitlines()
    assert f"pip install 'oat-edge[{format}]'" in line
    assert ("JetPack" in line) == (format == "trt")


@pytest.mark.parametrize(
    ("format", "version", "loads"),
    [
        ("trt", "8.6.2", False),
        ("trt", "10.2.0", False),
        ("trt", "10.3.0", True),
        ("trt", "10.16.1.11", True),
        ("trt", "11.4.0.106", True),
        ("trt", "12.0.0", False),
        ("trt-rtx", "1.3.0.35", False),
        ("trt-rtx", "1.4.0.76", True),
        ("trt-rtx", "2.0", False),
    ],
)
def test_only_versions_that_have_what_is_needed_load(format, version, loads, monkeypatch, tmp_path):
    """A module with nothing but a version stands for each: loading looks at nothing else."""
    name = LIBRARIES[format]
    (tmp_path / f"{name}.py").write_text(f"__version__ = {version!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    if loads:
        assert trt_api.load(format).version == version
    else:
        with pytest.raises(DependencyError, match=f"^{name} is {version}: expected .* or later"):
            trt_api.load(format)
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("format", "version", "weak"),
    [
        ("trt", "10.3.0", True),
        ("trt", "10.9.0.34", True),
        ("trt", "10.11.0.33", True),
        ("trt", "10.12.0.36", False),
        ("trt", "10.16.1.11", False),
        ("trt", "11.0.0.114", False),
        ("trt-rtx", "1.4.0.76", False),
        ("trt-rtx", "1.7.1.116", False),
    ],
)
def test_only_old_tensorrt_may_be_weakly_typed(format, version, weak):
    assert Library(format, None, version).may_be_weak == weak


# --- the logger ---------------------------------------------------------------------------------


def test_the_logger_hears_what_the_parser_says(rtx):
    lines = []
    logger = trt_api.make_logger(rtx, lambda *line: lines.append(line))
    network = rtx.api.Builder(logger).create_network(trt_api.network_flags(rtx))
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("NoSuchOp", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [])
    model = onnx.helper.make_model(graph, ir_version=9)
    assert not rtx.api.OnnxParser(network, logger).parse(model.SerializeToString())
    errors = [text for severity, text in lines if severity == "ERROR"]
    assert any("NoSuchOp" in text for text in errors)
    assert {severity for severity, _ in lines} <= set(rtx.api.ILogger.Severity.__members__)


# In a child: a runtime without a driver has been seen to crash.
NOISE = """
import json
from oat_edge.runtime import trt_api
library = trt_api.load("trt-rtx")
api = library.api
told, kept = [], []
class Everything(api.ILogger):
    def __init__(self):
        api.ILogger.__init__(self)
    def log(self, severity, text):
        told.append([severity.name, text])
def fail(logger):
    builder = api.Builder(logger)
    network = builder.create_network(trt_api.network_flags(library))
    image = network.add_input("x", api.float32, (1,))
    layer = network.add_activation(image, api.ActivationType.RELU)
    network.mark_output(layer.get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    assert api.Runtime(logger).deserialize_cuda_engine(plan) is None
everything = Everything()
fail(everything)
fail(trt_api.make_logger(library, lambda *line: kept.append(list(line))))
print(json.dumps([told, kept]))
"""


@without_gpu
def test_the_logger_leaves_out_what_only_repeats_that_there_is_no_driver(rtx, child_environment):
    done = subprocess.run(
        [sys.executable, "-c", NOISE], env=child_environment, capture_output=True, text=True
    )
    told, kept = json.loads(done.stdout.splitlines()[-1])
    told, kept = ([text for kind, text in lines if kind == "ERROR"] for lines in (told, kept))
    assert [text for text in told if "catchCudaError" in text]  # else nothing is tested here
    assert kept == [text for text in told if "catchCudaError" not in text]
    assert "deserialize" in kept[0]


def test_a_network_is_strongly_typed_unless_said_otherwise(rtx):
    flag = 1 << int(rtx.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert trt_api.network_flags(rtx) == flag
    assert trt_api.network_flags(rtx, strong=False) == 0
