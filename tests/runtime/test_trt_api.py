"""Versions of TensorRT: TensorRT-RTX itself, and the real bindings of the others in children."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import onnx
import pytest

import oat_edge
from oat_edge.errors import DependencyError
from oat_edge.runtime import trt_api
from oat_edge.runtime.recipe import LIBRARIES
from oat_edge.runtime.trt_api import Library
from tests.gpus import without_gpu

ROOT = Path(oat_edge.__file__).parent
SOURCES = [
    path
    for folder in ("runtime", "exporters")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "trt_api" in path.stem + path.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    return trt_api.load("trt-rtx")


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


# --- names --------------------------------------------------------------------------------------

# What a module of bindings offers: class -> attribute -> class of what it returns, if any.
DESCRIBE = """
import importlib, inspect, json, re, sys
api = importlib.import_module(sys.argv[1])
def returned(value):
    found = re.search(r"-> (?:list|List)?\\[?([\\w.]+)", getattr(value, "__doc__", None) or "")
    return found[1].rpartition(".")[2] if found else None
classes = {name: value for name, value in vars(api).items() if inspect.isclass(value)}
names = {name: {a: returned(getattr(c, a, None)) for a in dir(c)} for name, c in classes.items()}
print(json.dumps({"version": api.__version__, "top": dir(api), "classes": names}))
"""


def describe(module, **environment):
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE, module],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class Names(ast.NodeVisitor):
    """The names of TensorRT that a module uses, with the classes they belong to.

    What a variable stands for is read off its assignments in the same function, with the return
    types that the bindings themselves tell. A parameter or an attribute, with or without an
    underscore, stands for what any variable of that name in the module does. What lies behind
    `if library.format == "trt-rtx"` counts only with `rtx`.
    used: (classes, attribute); the attribute must be in one of them; "" is the library's module.
    """

    def __init__(self, tree, described, *, rtx):
        self.described, self.rtx = described, rtx
        self.env = {}
        self.scope = ""
        known = None
        while known != repr(sorted(self.env.items(), key=repr)):
            known = repr(sorted(self.env.items(), key=repr))
            self.used = set()
            self.visit(tree)

    def name_of(self, node):
        return (node.id if isinstance(node, ast.Name) else node.attr).lstrip("_")

    def of(self, node):
        """What an expression may be: "api", ("type", C) or ("a", C); of a list, its elements."""
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = self.name_of(node)
            if name == "api":
                return {"api"}
            if isinstance(node, ast.Attribute) and "api" in self.of(node.value):
                return {("type", node.attr)}
            if isinstance(node, ast.Name) and (self.scope, name) in self.env:
                return self.env[self.scope, name]
            return set().union(*(found for (_, one), found in self.env.items() if one == name))
        if isinstance(node, ast.Call):
            mapped = isinstance(node.func, ast.Name) and node.func.id == "map"
            return self.result(node.args[0] if mapped else node.func)
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            for loop in node.generators:
                self.bind(loop.target, loop.iter)
            return self.of(node.elt)
        if isinstance(node, (ast.Tuple, ast.List)):
            return set().union(*map(self.of, node.elts))
        if isinstance(node, (ast.Starred, ast.Subscript)):
            return self.of(node.value)
        if isinstance(node, ast.IfExp):
            return self.of(node.body) | self.of(node.orelse)
        return set()

    def result(self, function):
        """What calling an expression gives."""
        classes = self.described["classes"]
        found = {kind[1] for kind in self.of(function) if kind[0] == "type"}
        if isinstance(function, ast.Attribute):
            owners = [kind[1] for kind in self.of(function.value) if kind[0] == "a"]
            found |= {classes.get(owner, {}).get(function.attr) for owner in owners}
        return {("a", name) for name in found if name in classes}

    def bind(self, target, value):
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=True):
                self.bind(one, its)
        elif isinstance(target, (ast.Name, ast.Attribute)):
            scope = self.scope if isinstance(target, ast.Name) else ""
            known = self.env.setdefault((scope, self.name_of(target)), set())
            known |= {kind for kind in self.of(value) if kind != "api"}

    def visit_FunctionDef(self, node):
        outer, self.scope = self.scope, f"{self.scope}.{node.name}:{node.lineno}"
        self.generic_visit(node)
        self.scope = outer

    def visit_Assign(self, node):
        for target in node.targets:
            self.bind(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.bind(node.target, node.value)
        self.generic_visit(node)

    def visit_NamedExpr(self, node):
        self.bind(node.target, node.value)
        self.generic_visit(node)

    def visit_ExceptHandler(self, node):
        self.env.setdefault((self.scope, node.name), set())  # an exception, none of TensorRT's
        self.generic_visit(node)

    def visit_For(self, node):
        self.bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node):
        self.bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_If(self, node):
        self.visit(node.test)
        only_rtx = ast.unparse(node.test).endswith("format == 'trt-rtx'")
        for statement in [*(node.body if self.rtx or not only_rtx else []), *node.orelse]:
            self.visit(statement)

    def visit_ClassDef(self, node):
        for kind in set().union(*map(self.of, node.bases)):
            if kind[0] == "type":  # its methods are called by the library
                for method in node.body:
                    if isinstance(method, ast.FunctionDef):
                        self.used.add((frozenset({kind[1]}), method.name))
        self.generic_visit(node)

    def visit_Attribute(self, node):
        owners = {"" if kind == "api" else kind[1] for kind in self.of(node.value)}
        if owners:
            self.used.add((frozenset(owners), node.attr))
        self.generic_visit(node)


def used_names(described, *, rtx=False, sources=None):
    """The names that all `SOURCES` use."""
    texts = [path.read_text(encoding="utf-8") for path in SOURCES] if sources is None else sources
    # As one: what one module makes, another takes as a parameter of the same name.
    return Names(ast.parse("\n".join(texts)), described, rtx=rtx).used


def missing_names(described, used):
    classes, top = described["classes"], described["top"]
    return sorted(
        f"{'|'.join(sorted(owners))}.{name}"
        for owners, name in used
        if not any(name in (classes.get(owner, {}) if owner else top) for owner in owners)
    )


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
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    done = subprocess.run([*command, "-d", folder, package], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"pip cannot have {package} for this Python")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
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
