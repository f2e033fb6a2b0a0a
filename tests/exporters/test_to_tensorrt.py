"""NVIDIA's own parser and builder (TensorRT-RTX) on whatever machine this is, GPU or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from oat_edge.errors import BuildError, DependencyError, FallbackError, InputError
from oat_edge.exporters.to_tensorrt import build_engine, refit_engine
from oat_edge.runtime import trt_api
from oat_edge.runtime.recipe import Recipe
from tests.exporters.graphs import FLOAT, Graph, exported, feed, quantized, run
from tests.gpus import NO_GPU, on_gpu

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

NUM_CONVOLUTIONS = {"resnet8": 9, "resnet18": 20, "resnet34": 36, "wrn-16-1": 15,
                    "mobilenet-v2": 52}  # fmt: skip
ALWAYS = [
    ("resnet8", 0.5, False),
    ("resnet8", 1.0, False),
    ("resnet8", 1.0, True),
    ("wrn-16-1", 0.5, True),
    ("mobilenet-v2", 0.5, False),
]
ALL = [(a, w, p) for a in NUM_CONVOLUTIONS for w in (0.5, 0.75, 1.0) for p in (False, True)]
REST = [pytest.param(*one, marks=pytest.mark.slow) for one in ALL if one not in ALWAYS]


@pytest.fixture(scope="module")
def library():
    return trt_api.load("trt-rtx")


@pytest.fixture
def build(library, tmp_path) -> Callable:
    """Build with a log at tmp_path/build.log."""

    def build(content, precision="fp32", *, progress=lambda share: None, cache=b"", **options):
        recipe = Recipe(format="trt-rtx", precision=precision, **options)
        log = tmp_path / "build.log"
        return build_engine(
            content, recipe, library, timing_cache=cache, log=log, progress=progress
        )

    return build


@pytest.mark.parametrize("arch, width, pinned", [*ALWAYS, *REST])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_network_builds_and_computes_in_what_was_asked(build, arch, width, pinned, precision):
    built = build(exported(arch, width, precision, pinned), precision)
    assert built.precision == precision and not built.reason
    assert built.convolutions == {precision: NUM_CONVOLUTIONS[arch]}
    assert built.typing == "strong" and built.seconds > 0
    # An engine holds its weights: nothing was left out.
    bytes_per_weight = {"fp32": 4, "fp16": 2, "int8": 1}[precision]
    model = onnx.load_from_string(exported(arch, width, "fp32", pinned))
    weights = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    held = sum(np.prod(t.dims) for t in model.graph.initializer if t.name in weights)
    assert len(built.plan) > bytes_per_weight * held


@pytest.mark.parametrize("batches", [(1, 1, 1), (4, 4, 4), (1, 1, 64)])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_any_range_of_batches_builds(build, batches, precision):
    assert build(exported("resnet8", 0.5, precision), precision, batches=batches).plan


def test_options_reach_the_builder(build, library):
    content = exported("resnet8")
    assert build(content, opt_level=0, workspace_mb=64).precision == "fp32"
    recipe = Recipe(format="trt-rtx", precision="fp32")
    assert build_engine(content, recipe, library).precision == "fp32"  # without log and progress


def test_int8_may_leave_layers_in_a_higher_precision(build):
    model = onnx.load_from_string(exported("resnet8"))
    first, *_, last = [node.name for node in model.graph.node if node.op_type == "Conv"]
    built = build(quantized(exported("resnet8"), leave=[first, last]), "int8")
    assert built.precision == "int8"
    assert built.convolutions == {"int8": 7, "fp32": 2}


class TestProgress:
    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_it_grows_to_one_and_is_one_only_at_the_end(self, build, precision):
        shares: list[float] = []
        build(exported("resnet8", 0.5, precision), precision, progress=shares.append)
        assert len(shares) > 20 and shares[-1] == 1
        assert all(a < b for a, b in pairwise(shares))
        assert 0 < shares[0] < 0.2 and shares[-2] < 1

    @pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt(), SystemExit(3)])
    def test_what_a_callback_raises_ends_the_build_and_comes_out(self, build, error, tmp_path):
        told: list[float] = []

        def progress(share):
            told.append(share)
            if share > 0.3:
                raise error

        with pytest.raises(type(error)) as caught:
            build(exported("resnet8"), progress=progress)
        assert caught.value is error
        assert told[-1] < 1 and sum(share > 0.3 for share in told) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["build.log"]
        assert build(exported("resnet8")).plan  # nothing of it is left in the library

    def test_ctrl_c_ends_the_build(self, build, tmp_path):
        """Sent while the library runs, so that it arrives inside a callback."""
        handler = signal.getsignal(signal.SIGINT)
        told: list[float] = []

        def progress(share):
            told.append(share)
            if len(told) == 5:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            build(exported("resnet8"), progress=progress)
        assert len(told) < 10
        assert signal.getsignal(signal.SIGINT) is handler
        assert [path.name for path in tmp_path.iterdir()] == ["build.log"]

    def test_ctrl_c_at_any_moment_is_no_crash(self, tmp_path, child_environment):
        """A process of its own, hit again and again while it parses, builds and logs."""
        (tmp_path / "a.onnx").write_bytes(exported("resnet8", 1.0))
        code = """
            import os, signal, sys, threading, time
            from pathlib import Path
            from oat_edge.exporters.to_tensorrt import build_engine
            from oat_edge.runtime.recipe import Recipe
            from oat_edge.runtime.trt_api import load
            library, content = load("trt-rtx"), Path(sys.argv[1]).read_bytes()
            recipe = Recipe(format="trt-rtx", precision="fp32")
            ended = 0
            for pause in range(12):
                timer = threading.Timer(0.01 * pause, os.kill, (os.getpid(), signal.SIGINT))
                try:
                    timer.start()
                    build_engine(content, recipe, library)
                    time.sleep(10)
                except KeyboardInterrupt:
                    ended += 1
            print(ended)
        """
        arguments = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.onnx")]
        child = subprocess.run(
            arguments, env=child_environment, capture_output=True, text=True, timeout=120
        )
        assert (child.returncode, child.stdout.strip()) == (0, "12"), child.stderr


class TestLog:
    def test_success_leaves_the_whole_log(self, build, library, tmp_path):
        build(exported("resnet8"), batches=(2, 3, 5))
        lines = (tmp_path / "build.log").read_text().splitlines()
        assert lines[0].startswith(f"[INFO] {library.name}") and "[2, 3, 5]" in lines[0]
        assert len(lines) > 100 and any("LayerType: correlation" in line for line in lines)

    def test_failure_leaves_it_too_and_names_it(self, build, tmp_path):
        log = tmp_path / "build.log"
        with pytest.raises(BuildError) as error:
            build(b"no ONNX at all")
        assert f"log: {log}" in str(error.value)
        assert "[ERROR]" in log.read_text()

    def test_a_log_that_cannot_be_written_is_said_first(self, library, tmp_path):
        recipe = Recipe(format="trt-rtx", precision="fp32")
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot write"):
            build_engine(b"", recipe, library, log=tmp_path / "file" / "build.log")


def changed(change: Callable, arch: str = "resnet8", precision: str = "fp32") -> bytes:
    model = onnx.load_from_string(exported(arch, precision=precision))
    change(model)
    return bytes(model.SerializeToString())


def refused(build, content, error, match, precision="fp32", **options):
    with pytest.raises(error, match=match) as caught:
        build(content, precision, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


class TestRefused:
    @pytest.mark.parametrize("content", [b"\x00\x01broken", exported, b""])
    def test_broken_bytes(self, build, content):
        if callable(content):
            content = content("resnet8")[:20_000]
        refused(build, content, BuildError, "does not read the ONNX file|inputs: none")

    def test_an_unknown_operator(self, build):
        def change(model):
            (node,) = [node for node in model.graph.node if node.op_type == "ReduceMean"]
            node.op_type, node.name = "Frobnicate", "the_node"

        refused(build, changed(change), BuildError, "Frobnicate the_node: ")

    @pytest.mark.parametrize("name", ["image", "lambda"])
    def test_a_fixed_batch(self, build, name):
        def change(model):
            (value,) = [value for value in model.graph.input if value.name == name]
            value.type.tensor_type.shape.dim[0].dim_value = 4
            del model.graph.value_info[:]

        refused(build, changed(change), BuildError, f"{name} has a fixed batch of 4")

    def test_inputs_of_other_names(self, build):
        def rename(model):
            model.graph.input[1].name = "lam"
            for node in model.graph.node:
                for place, name in enumerate(node.input):
                    node.input[place] = "lam" if name == "lambda" else name

        refused(build, changed(rename), BuildError, "inputs: image, lam, .*expected image and lam")

    def test_inputs_of_other_types(self, build):
        def change(model):
            cast = onnx.helper.make_node("Cast", ["image"], ["image_float"], to=FLOAT)
            for node in model.graph.node:
                for place, name in enumerate(node.input):
                    node.input[place] = "image_float" if name == "image" else name
            model.graph.node.insert(0, cast)
            model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16

        refused(build, changed(change), BuildError, "image is HALF")

    @pytest.mark.parametrize("asked, carried", [("fp16", "fp32"), ("fp32", "fp16"),
                                                ("int8", "fp32"), ("int8", "fp16"),
                                                ("fp32", "int8")])  # fmt: skip
    def test_a_file_in_another_precision(self, build, asked, carried):
        content = exported("resnet8", 0.5, carried)
        match = rf"ONNX file was asked for in {asked}.*9 in {carried}.*--precision {asked}"
        refused(build, content, FallbackError, match, asked)

    def test_weights_of_mixed_types(self, build):
        def change(model):
            (_, conv, *_) = [node for node in model.graph.node if node.op_type == "Conv"]
            (tensor,) = [t for t in model.graph.initializer if t.name == conv.input[1]]
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

        refused(build, changed(change, precision="fp16"), BuildError, "same type", "fp16")

    def test_one_convolution_in_another_precision(self, build):
        graph = Graph()
        half = graph.add("Cast", "image", to=onnx.TensorProto.FLOAT16)
        weights = graph.constant(np.ones((8, 3, 1, 1), dtype=np.float16))
        single = graph.add("Cast", graph.add("Conv", half, weights), to=FLOAT)
        graph.head(graph.conv(single, 8, 8), 8)
        content = graph.model().SerializeToString()
        refused(build, content, FallbackError, "1 in fp16, 1 in fp32", "fp16")
        refused(build, content, FallbackError, "1 in fp16, 1 in fp32", "fp32")

    @pytest.mark.parametrize("option", ["refit", "version_compatible"])
    def test_what_needs_a_gpu(self, build, option, tmp_path):
        if NO_GPU is None:
            pytest.skip("there is a GPU")
        name = option.replace("_", "-")
        match = f"built no engine: .*{name} engines need a GPU.*log: {tmp_path}"
        refused(build, exported("resnet8"), BuildError, match, **{option: True})

    def test_an_older_library_is_tried_weakly_typed_once(self, library, tmp_path):
        """The same library, taken for one in which that is allowed; refit fails without a GPU."""
        if NO_GPU is None:
            pytest.skip("there is a GPU")
        older = trt_api.Library("trt", library.api, "10.3.0")
        log = tmp_path / "build.log"
        recipe = Recipe(format="trt", precision="fp32", refit=True)
        missing = pytest.raises(BuildError, match=r"built no engine.*try without refit")
        with pytest.warns(DeprecationWarning), missing:  # of RTX's timing cache
            build_engine(exported("resnet8"), recipe, older, log=log)
        assert log.read_text().count("trying weakly typed") == 1

    def test_refitting_without_a_gpu(self, library):
        if NO_GPU is None:
            pytest.skip("there is a GPU")
        with pytest.raises(DependencyError):
            refit_engine(b"plan", exported("resnet8"), library)


class TestBakedBatchSize:
    """Where the builder does not see it, two batch sizes in ONNX Runtime show it."""

    def gated(self, bake):
        """A network whose channel gate has lost its batch."""
        graph = Graph()
        features = graph.conv("image", 3, 8, 3)
        gate = graph.add("Sigmoid", bake(graph, features))
        graph.head(graph.add("Mul", features, gate), 8)
        return graph.model().SerializeToString()

    def test_a_reshape_that_loses_values_is_refused(self, build):
        def bake(graph, features):
            mean = graph.add("GlobalAveragePool", features)
            return graph.add("Reshape", mean, graph.constant(np.array([1, 8, 1, 1])))

        content = self.gated(bake)
        refused(build, content, BuildError, "violate shape constraints")
        with pytest.raises(Exception, match=r"[Rr]eshape"):
            run(content, 5)

    def test_a_reshape_that_mixes_images_is_not(self, build):
        def bake(graph, features):
            as_one = graph.add("Reshape", features, graph.constant(np.array([1, -1, 8, 8])))
            axes = graph.constant(np.array([1, 2, 3]))
            return graph.add("ReduceMean", as_one, axes, keepdims=1)

        content = self.gated(bake)
        assert build(content).plan
        assert self.difference(content) > 1e-3

    def test_nor_is_a_first_image_that_speaks_for_all(self, build):
        def bake(graph, features):
            bounds = [graph.constant(np.array([value])) for value in (0, 1, 0)]
            return graph.add("Slice", graph.add("GlobalAveragePool", features), *bounds)

        content = self.gated(bake)
        assert build(content).plan
        assert self.difference(content) > 1e-3

    def test_where_an_output_shows_it_the_build_is_refused(self, build):
        graph = Graph()
        baked = graph.constant(np.array([2, 8, 8, 8]))
        graph.head(graph.add("Reshape", graph.conv("image", 3, 8, 3), baked), 8)
        content = graph.model([("logits", (None, 10))]).SerializeToString()
        refused(build, content, BuildError, "logits has a fixed batch of 2")

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_exported_networks_have_none(self, precision):
        assert self.difference(exported("resnet8", 0.5, precision)) < 1e-3

    def difference(self, content):
        """Largest difference of the last image's logits alone and in a batch of five."""
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        inputs = feed(content, 5)
        (together,) = session.run(None, inputs)
        (alone,) = session.run(None, {name: value[4:] for name, value in inputs.items()})
        return np.abs(together[4:] - alone).max()


def test_the_timing_cache_is_handed_on_and_a_broken_one_is_no_failure(library, tmp_path):
    """TensorRT's way through, run with the library that is here."""
    newer = trt_api.Library("trt", library.api, "10.13.0")
    recipe, log = Recipe(format="trt", precision="fp32"), tmp_path / "build.log"
    with pytest.warns(DeprecationWarning):  # RTX's own is empty
        first = build_engine(exported("resnet8"), recipe, newer)
        again = build_engine(exported("resnet8"), recipe, newer, timing_cache=first.timing_cache)
        assert first.timing_cache and again.timing_cache == first.timing_cache
        built = build_engine(exported("resnet8"), recipe, newer, timing_cache=b"x" * 99, log=log)
    assert built.plan and "timing cache" in log.read_text()


def test_neither_torch_nor_onnx_is_needed(tmp_path, child_environment):
    (tmp_path / "a.onnx").write_bytes(exported("resnet8", 0.5, "fp16"))
    code = """
        import sys
        from pathlib import Path
        for name in ("torch", "onnx", "onnxruntime"):
            sys.modules[name] = None
        from oat_edge.exporters.to_tensorrt import build_engine
        from oat_edge.runtime.recipe import Recipe
        from oat_edge.runtime.trt_api import load
        recipe = Recipe(format="trt-rtx", precision="fp16")
        print(build_engine(Path(sys.argv[1]).read_bytes(), recipe, load("trt-rtx")).precision)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.onnx")]
    child = subprocess.run(arguments, env=child_environment, capture_output=True, text=True)
    assert child.stdout.strip() == "fp16", child.stderr


@on_gpu
@pytest.mark.parametrize("format", ["trt", "trt-rtx"])
class TestOnGpu:
    @pytest.fixture
    def here(self, format):
        try:
            return trt_api.load(format)
        except DependencyError as error:
            pytest.skip(str(error))

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_the_precision_is_read_from_the_engine(self, here, format, precision, tmp_path):
        recipe = Recipe(format=format, precision=precision)
        built = build_engine(exported("resnet8", 0.5, precision), recipe, here)
        assert (built.precision, built.reason) == (precision, "")

    def test_refitting_changes_the_weights_and_needs_the_same_graph(self, here, format):
        recipe = Recipe(format=format, precision="fp32", refit=True)
        content = exported("resnet8", pinned=True)

        def halve(model):
            for tensor in model.graph.initializer:
                if len(tensor.dims) == 4:
                    values = numpy_helper.to_array(tensor) / 2
                    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

        model = onnx.load_from_string(content)
        halve(model)
        built = build_engine(content, recipe, here)
        refitted = refit_engine(built.plan, model.SerializeToString(), here)
        assert refitted != built.plan
        with pytest.raises(BuildError, match="cannot put these weights"):
            refit_engine(built.plan, b"no ONNX", here)
