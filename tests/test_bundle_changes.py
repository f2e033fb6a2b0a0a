from __future__ import annotations

import json
import subprocess
import sys

import pytest

from oat_edge.bundle import MANIFEST, Bundle
from oat_edge.errors import InputError
from tests.test_bundle import SPEC, add, write_artifact


def test_adding_keeps_other_files_and_replaces_those_of_the_same_name(tmp_path):
    folder = tmp_path / "b"
    add(folder, write_artifact(folder, "a.onnx", b"1"), write_artifact(folder, "b.onnx", b"2"))
    again = add(folder, write_artifact(folder, "a.onnx", b"3"))
    assert sorted(a.file for a in again.artifacts) == ["a.onnx", "b.onnx"]
    assert [again.checked_path(a).read_bytes() for a in again.artifacts] == [b"2", b"3"]
    assert (tmp_path / "latest").resolve() == folder.resolve()


def test_staged_files_move_in_together(tmp_path):
    folder, staging = tmp_path / "b", tmp_path / "staging"
    new = [write_artifact(staging, name, name.encode()) for name in ("a.onnx", "b.onnx")]
    bundle = add(folder, *new, staging=staging)
    assert [bundle.checked_path(a).read_bytes() for a in bundle.artifacts] == [b"a.onnx", b"b.onnx"]
    assert list(staging.iterdir()) == []


def test_files_of_another_checkpoint_are_refused_and_nothing_is_touched(tmp_path):
    folder, staging = tmp_path / "b", tmp_path / "staging"
    add(folder, write_artifact(folder, "a.onnx", b"old"))
    before = (folder / MANIFEST).read_bytes()
    new = write_artifact(staging, "a.onnx", b"new")
    with pytest.raises(InputError, match=r"cccccccccccc….*dddddddddddd….*--replace"):
        add(folder, new, checkpoint="d" * 64, staging=staging)
    assert (folder / MANIFEST).read_bytes() == before
    assert (folder / "a.onnx").read_bytes() == b"old"


def test_replace_takes_the_other_checkpoint_s_files_out_and_no_one_else_s(tmp_path):
    folder, staging = tmp_path / "b", tmp_path / "staging"
    add(folder, write_artifact(folder, "a.onnx", b"old"), write_artifact(folder, "b.onnx", b"old"))
    (folder / "notes.txt").write_text("mine")
    new = write_artifact(staging, "a.onnx", b"new")
    bundle = add(folder, new, checkpoint="d" * 64, staging=staging, replace=True)
    assert Bundle.open(folder).artifacts == (new,)
    assert bundle.checked_path(new).read_bytes() == b"new"
    listed = {path.name for path in folder.iterdir()}
    assert listed == {"a.onnx", MANIFEST, "notes.txt", ".lock"}


def test_replace_with_the_same_checkpoint_keeps_its_files(tmp_path):
    folder = tmp_path / "b"
    add(folder, write_artifact(folder, "a.onnx"))
    bundle = add(folder, write_artifact(folder, "b.onnx"), replace=True)
    assert [bundle.checked_path(a).name for a in bundle.artifacts] == ["a.onnx", "b.onnx"]


def test_a_damaged_manifest_is_repaired_by_what_its_error_says(tmp_path):
    folder = tmp_path / "b"
    add(folder, write_artifact(folder, "a.onnx"))
    (folder / MANIFEST).write_bytes(b"{")
    with pytest.raises(InputError, match="oat-edge export --replace"):
        add(folder, write_artifact(folder, "a.onnx"))
    add(folder, write_artifact(folder, "a.onnx"), replace=True)
    assert len(Bundle.open(folder).artifacts) == 1


def test_an_open_bundle_does_not_follow_latest(tmp_path):
    for name in ("one", "two"):
        add(tmp_path / name, write_artifact(tmp_path / name, content=name.encode()))
        if name == "one":
            opened = Bundle.open(tmp_path / "latest")
    assert opened.checked_path(opened.artifacts[0]).read_bytes() == b"one"


ADDER = """
import json, sys
from pathlib import Path
from oat_edge.bundle import Artifact, add_artifacts
from oat_edge.network_spec import NetworkSpec
from oat_edge.files import sha256_file
folder, letter = Path(sys.argv[1]), sys.argv[2]
spec = NetworkSpec.from_json(json.loads(sys.argv[3]))
sys.stdin.read(1)
for number in range(15):
    file = folder / f"{letter}{number}.onnx"
    file.write_text(file.name)
    artifact = Artifact(file=file.name, sha256=sha256_file(file), format="onnx", width=1.0)
    add_artifacts(folder, [artifact], run="run", checkpoint_sha256="c" * 64, spec=spec)
"""


def test_processes_that_add_at_once_all_end_up_in_the_manifest(tmp_path, child_environment):
    folder = tmp_path / "b"
    folder.mkdir()
    spec = json.dumps(SPEC.to_json())
    adders = [
        subprocess.Popen(
            [sys.executable, "-c", ADDER, folder, letter, spec],
            env=child_environment,
            stdin=subprocess.PIPE,
        )
        for letter in "abc"
    ]
    for adder in adders:
        adder.stdin.write(b"g")
        adder.stdin.close()
    assert [adder.wait() for adder in adders] == [0, 0, 0]
    bundle = Bundle.open(folder)
    assert {a.file for a in bundle.artifacts} == {f"{x}{n}.onnx" for x in "abc" for n in range(15)}
    assert all(bundle.checked_path(artifact) for artifact in bundle.artifacts)
    leftovers = {path.name for path in folder.iterdir() if path.suffix != ".onnx"}
    assert leftovers == {MANIFEST, ".lock"}
