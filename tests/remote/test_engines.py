"""Engines that a device has built come back, and go to that device alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

from oat_edge.bundle import Artifact, Bundle, save_manifest
from oat_edge.remote.engines import engines_for, files_of, names_for
from oat_edge.remote.fleet import bench_on
from oat_edge.runtime.engines import build_target, keep_engine, recipe_of
from oat_edge.runtime.recipe import Recipe
from tests.packages import need_rtx
from tests.remote.conftest import REQUEST, target_of


def with_engine(bundle: Bundle) -> Bundle:
    """The bundle with an engine that is still to be built, of a kind that needs no GPU for it."""
    recipe = Recipe(format="trt-rtx", precision="fp32", batches=(1, 2, 4))
    engine = Artifact(
        file="w0.50-fp32-rtx.engine", sha256="", format="trt-rtx", width=0.5, deferred=True,
        source=bundle.select(format="onnx", width=0.5).file,
        recipe=dataclasses.asdict(recipe), precision_observed=None,
    )  # fmt: skip
    save_manifest(dataclasses.replace(bundle, artifacts=(*bundle.artifacts, engine)))
    return Bundle.open(bundle.path)


def test_only_whole_engines_of_the_very_device_are_sent_back(bundle):
    bundle = with_engine(bundle)
    keys = [f"key {letter}" for letter in "abcd"]
    names = {key: names_for(bundle, [key])[0] for key in keys}
    assert len(set(names.values())) == 4
    folder = bundle.path / "engines" / "orin"
    folder.mkdir(parents=True)

    def put(name, key, content):
        (folder / f"{name}.engine").write_bytes(content)
        facts = {"device_key": key, "sha256": hashlib.sha256(content).hexdigest()}
        (folder / f"{name}.json").write_text(json.dumps(facts))

    for key in keys:
        put(names[key], key, b"1")
    put("a" * 32, keys[0], b"2")  # of a name that no engine of this bundle has there
    (folder / f"{names[keys[1]]}.engine").write_bytes(b"changed")
    (folder / f"{names[keys[2]]}.json").write_text("{")
    assert [path.stem for path in engines_for(bundle, "orin", keys[:3])] == [names[keys[0]]]
    assert engines_for(bundle, "orin", []) == []
    assert engines_for(bundle, "thor", keys) == []  # of the same kind, and not the same
    put(names[keys[0]], keys[3], b"1")
    assert engines_for(bundle, "orin", keys[:1]) == []


def test_an_engine_that_was_built_there_comes_back_and_goes_there_again(
    device, tiny_bundle, told, monkeypatch, tmp_path
):
    need_rtx()
    bundle = with_engine(Bundle.open(shutil.copytree(tiny_bundle.path, tmp_path / "tiny")))
    request = dataclasses.replace(REQUEST, width="0.5")
    monkeypatch.setenv("XDG_CACHE_HOME", str(device.cache.parent))
    (artifact,) = bundle.of_format("trt-rtx")
    onnx = bundle.path / str(artifact.source)
    kept = keep_engine(onnx, recipe_of(artifact), build_target("trt-rtx"))
    other = device.cache / "engines" / f"{'0' * 32}.json"  # another network's: it stays there
    other.write_text("{}")
    names = sorted(files_of(bundle))
    assert names == sorted(f"{kept.path.stem}{end}" for end in (".engine", ".json", ".log"))
    monkeypatch.delenv("XDG_CACHE_HOME")

    bench_on([target_of(device)], bundle, request).check()
    folder = bundle.path / "engines" / "orin"
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        assert (folder / name).read_bytes() == (kept.path.parent / name).read_bytes()

    # Whatever it sent is not loaded here, and another device of the same kind does not get it.
    for path in device.cache.glob("engines/*"):
        path.unlink()
    bench_on([target_of(device, name="other")], bundle, request, say=told.say).check()
    assert "engines that" not in told and not list(device.cache.glob("engines/*.engine"))
    # The same device, whose cache was emptied.
    bench_on([target_of(device)], bundle, request, say=told.say).check()
    assert "sent 1 engines that it had built before" in told
    assert (device.cache / "engines").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(device.cache.parent))
    said = []
    again = keep_engine(onnx, recipe_of(artifact), build_target("trt-rtx"),
                        say=lambda text, share=0.0: said.append(text))  # fmt: skip
    assert again.sha256 == kept.sha256 and said == []  # it was not built again
