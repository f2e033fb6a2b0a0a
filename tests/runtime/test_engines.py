"""Engines that are kept, built by the real TensorRT-RTX, which needs no GPU for that."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time

import onnx
import pytest
from onnx import numpy_helper

from oat_edge.errors import BuildError, DependencyError, InputError
from oat_edge.files import exclusive_lock
from oat_edge.runtime import engines
from oat_edge.runtime.cuda import Gpu
from oat_edge.runtime.engines import Target, build_target, keep_engine, obtain_engine
from oat_edge.runtime.recipe import Recipe
from oat_edge.runtime.trt_api import load

RECIPE = Recipe(format="trt-rtx", precision="fp32", batches=(1, 2, 4))


@pytest.fixture(scope="module")
def source(tiny_bundle):
    return tiny_bundle.checked_path(tiny_bundle.select(format="onnx", width=0.5))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """An empty cache, and its folder of engines."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "oat-edge" / "engines"


def build(source, recipe=RECIPE):
    said = []
    say = lambda text, share=0.0: said.append((text, share))  # noqa: E731
    return keep_engine(source, recipe, build_target("trt-rtx"), say=say), said


def test_an_engine_is_built_once_and_then_found(source, kept):
    first, said = build(source)
    assert first.path.parent == kept and first.path.stat().st_size > 10_000
    assert first.precision == "fp32" and first.typing == "strong"
    assert said[0] == (
        f"{source.name}: building an engine with tensorrt_rtx {load('trt-rtx').version}",
        0.0,
    )
    shares = [share for _, share in said]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert "Layers" in first.log.read_text()
    written = first.path.stat().st_mtime_ns
    second, said = build(source)
    assert second == first and not said and first.path.stat().st_mtime_ns == written


def test_other_weights_in_the_same_graph_are_another_engine(source, kept, tmp_path):
    model = onnx.load(source)
    weight = next(t for t in model.graph.initializer if "conv" in t.name)
    weight.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(weight), weight.name))
    other = tmp_path / "other.onnx"
    onnx.save(model, other)
    assert build(source)[0].sha256 != build(other)[0].sha256
    assert len(list(kept.glob("*.engine"))) == 2


@pytest.mark.parametrize("change", [{"batches": (1, 2, 5)}, {"opt_level": 2}, {"workspace_mb": 99}])
def test_another_recipe_is_another_engine(change, source, kept):
    first, _ = build(source)
    second, _ = build(source, dataclasses.replace(RECIPE, **change))
    assert first.path != second.path and first.path.is_file()


@pytest.mark.parametrize("suffix", ["engine", "json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "empty object"])
def test_a_damaged_engine_is_never_returned_but_built_again(suffix, damage, source, kept):
    first, _ = build(source)
    path = first.path.with_suffix(f".{suffix}")
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        changed = {
            "cut": content[: len(content) // 2],
            "flip": content[:40] + bytes([content[40] ^ 1]) + content[41:],
            "empty object": b"{}",
        }
        path.write_bytes(changed[damage])
    again, _ = build(source)
    assert json.loads(again.path.with_suffix(".json").read_text())["sha256"] == again.sha256
    assert engines.sha256_file(again.path) == again.sha256
    assert build(source)[1] == []


def test_a_build_that_fails_leaves_its_log_and_nothing_else(kept, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    with pytest.raises(BuildError) as caught:
        build(broken)
    assert "\n" not in str(caught.value)
    assert {path.suffix for path in kept.iterdir() if path.is_file()} - {""} == {".log"}
    assert not list(kept.glob(".writing-*"))


TWICE = """
import sys
from pathlib import Path
from oat_edge.runtime.engines import build_target, keep_engine
from oat_edge.runtime.recipe import Recipe
said = []
recipe = Recipe(format="trt-rtx", precision="fp32", batches=(1, 2, 4))
say = lambda text, share=0.0: said.append(text)
kept = keep_engine(Path(sys.argv[1]), recipe, build_target("trt-rtx"), say=say)
print(any("building an" in text for text in said), kept.sha256)
"""


def test_commands_at_once_build_one_engine(source, kept, child_environment, tmp_path):
    environment = child_environment | {"XDG_CACHE_HOME": str(tmp_path)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TWICE, str(source)], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    lines = []
    for child in children:
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, err
        lines.append(out.split()[-2:])
    assert sorted(built for built, _ in lines) == ["False", "False", "True"]
    assert len({sha256 for _, sha256 in lines}) == 1


def gpu_named(name, capability="8.7"):
    return Gpu(
        name=name, compute_capability=capability, cuda="12.6", multiprocessors=8, memory_mb=7600.0
    )


def test_an_engine_loads_where_library_gpu_and_platform_are_the_same():
    library = dataclasses.replace(load("trt-rtx"), format="trt", version="10.3.0")
    here = Target(library, gpu_named("Orin"))
    assert "tensorrt 10.3.0" in here.key and "Orin" in here.key and "8.7" in here.key
    assert engines._loads(here.key, here, RECIPE)
    others = [
        Target(library, gpu_named("Thor")),
        Target(library, gpu_named("Orin", "11.0")),
        Target(dataclasses.replace(library, version="10.3.1"), gpu_named("Orin")),
        Target(library, None),
    ]
    for other in others:
        assert not engines._loads(other.key, here, RECIPE)
    assert not engines._loads(None, here, RECIPE)
    assert not engines._loads(
        "nonsense", here, dataclasses.replace(RECIPE, version_compatible=True)
    )


@pytest.mark.parametrize(
    ("built", "runs", "loads"),
    [("10.3.0", "10.16.2", True), ("10.16.2", "10.3.0", False), ("10.9.1", "11.4.0", True)],
)
def test_a_version_compatible_engine_loads_in_later_versions_alone(built, runs, loads):
    recipe = dataclasses.replace(RECIPE, version_compatible=True)
    library = dataclasses.replace(load("trt-rtx"), format="trt", version=built)
    old, gpu = Target(library, gpu_named("Orin")), gpu_named("Orin")
    new = Target(dataclasses.replace(library, version=runs), gpu)
    assert engines._loads(old.key, new, recipe) == loads
    assert not engines._loads(old.key, new, RECIPE)


@pytest.fixture
def deferred(tiny_bundle, source):
    """The bundle with a deferred engine beside its ONNX files."""
    onnx_file = tiny_bundle.select(format="onnx", width=0.5)
    engine = dataclasses.replace(
        onnx_file, file="w0.50-fp32.engine", sha256="", format="trt", deferred=True,
        source=onnx_file.file, recipe=Recipe(precision="fp32").to_json(), precision_observed=None,
    )  # fmt: skip
    artifacts = (*tiny_bundle.artifacts, engine)
    return dataclasses.replace(tiny_bundle, artifacts=artifacts), engine


def test_boards_of_one_family_are_told_apart():
    library = dataclasses.replace(load("trt-rtx"), format="trt", version="10.3.0")
    small, large = gpu_named("Orin"), dataclasses.replace(gpu_named("Orin"), multiprocessors=16)
    assert not engines._loads(Target(library, small).key, Target(library, large), RECIPE)


@pytest.mark.parametrize("change", [{"format": "trt-rtx"}, {"precision_requested": "fp16"}])
def test_an_entry_that_contradicts_its_recipe_is_refused(change, deferred):
    _, engine = deferred
    with pytest.raises(InputError, match=r"w0\.50-fp32\.engine .*, its recipe trt fp32"):
        engines.recipe_of(dataclasses.replace(engine, **change))


def test_a_folder_that_others_write_holds_no_engines(source, kept):
    kept.mkdir(parents=True)
    kept.chmod(0o777)
    with pytest.raises(InputError, match=r"others may write it: .*XDG_CACHE_HOME"):
        build(source)
    assert list(kept.iterdir()) == []


def test_a_cache_that_cannot_be_written_says_where_it_is_named(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write .*XDG_CACHE_HOME"):
        build(source)


def test_what_killed_builds_left_goes_with_the_next(source, kept):
    kept.mkdir(parents=True, mode=0o700)
    (kept / ".writing-0123.engine").write_bytes(b"half an engine")
    build(source)
    assert not list(kept.glob(".writing-*"))


def test_a_build_that_waits_for_another_says_so(source, kept):
    kept.mkdir(parents=True, mode=0o700)
    said, built = [], []
    with exclusive_lock(kept):
        say = lambda text, share=0.0: said.append(text)  # noqa: E731
        target = build_target("trt-rtx")
        waiting = threading.Thread(
            target=lambda: built.append(keep_engine(source, RECIPE, target, say=say))
        )
        waiting.start()
        for _ in range(2000):
            if said:
                break
            time.sleep(0.01)
        assert said == [f"{source.name}: waiting for another command that builds an engine"]
    waiting.join(timeout=120)
    assert built[0].path.is_file()


def test_a_cpu_runs_no_engine(deferred):
    with pytest.raises(InputError, match=r"w0\.50-fp32\.engine is a trt engine: it runs on"):
        obtain_engine(*deferred, device="cpu")


def test_without_a_gpu_nothing_is_built_or_loaded(deferred, kept, no_gpu):
    with pytest.raises(DependencyError) as caught:
        obtain_engine(*deferred)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    assert not kept.exists()


def test_a_source_that_is_gone_is_named(deferred):
    bundle, engine = deferred
    left = tuple(a for a in bundle.artifacts if a.file != engine.source)
    with pytest.raises(InputError, match=r"lacks w0\.50-fp32\.onnx, which w0\.50-fp32\.engine"):
        engines.source_of(dataclasses.replace(bundle, artifacts=left), engine)
