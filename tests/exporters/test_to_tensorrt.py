"""NVIDIA's own parser and builder (TensorRT-RTX) on whatever machine this is, GPU or not."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from oat_edge.errors import BuildError, DependencyError, InputError
from oat_edge.exporters.build_session import Session
from oat_edge.exporters.to_tensorrt import build_engine, refit_engine
from oat_edge.runtime import trt_api
from oat_edge.runtime.recipe import Recipe
from tests.exporters.graphs import exported, quantized
from tests.gpus import on_gpu
from tests.packages import need_rtx

need_rtx()

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

    def test_a_build_that_failed_leaves_nothing_alive(self, build):
        """Python's collector cannot see a cycle that goes through the library."""

        def progress(share):
            raise ValueError("enough")

        def alive():
            gc.collect()
            return sum(type(one) is Session for one in gc.get_objects())

        before = alive()
        try:
            build(exported("resnet8"), progress=progress)
        except ValueError as error:
            error.itself = error  # a cycle, as tracebacks make them
        assert alive() == before

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
