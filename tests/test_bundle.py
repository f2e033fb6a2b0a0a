from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.bundle import MANIFEST, Artifact, Bundle, _digest, add_artifacts, save_manifest
from oat_edge.errors import InputError
from oat_edge.files import sha256_file
from oat_edge.network_spec import NetworkSpec

CHECKPOINT = "c" * 64


SPEC = NetworkSpec(
    arch="resnet8",
    # Escapes and characters of one to four bytes: what a flipped bit can turn into.
    class_names=("a\\ud83d", '"', "é", "한", "🙂", "\n"),
    image_shape=(1, 8, 8),
    eps=8 / 255,
)


def write_artifact(folder, name="w1.00-fp32.onnx", content=b"network", **facts):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    facts = {"format": "onnx", "width": 1.0, **facts}
    return Artifact(file=name, sha256=sha256_file(folder / name), **facts)


def add(folder, *artifacts, checkpoint=CHECKPOINT, **options):
    facts = {"run": "run", "checkpoint_sha256": checkpoint, "spec": SPEC}
    return add_artifacts(folder, list(artifacts), **facts, **options)


def same(a: Bundle, b: Bundle) -> bool:
    return dataclasses.replace(a, path=b.path) == b


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A bundle, the bytes of its manifest, and a folder to damage copies in."""
    folder = tmp_path_factory.mktemp("whole") / "bundle"
    parity = {"reference": "torch, unfolded", "max_abs_diff": 1.5e-07, "lambdas": [0.0, 0.1]}
    bundle = add(
        folder,
        write_artifact(folder, versions={"onnx": "1.17"}, parity=parity),
        write_artifact(folder, "w1.00-fp32-lambda1.onnx", b"pinned", pinned_lambda=1.0),
        write_artifact(folder, "attacks.npz", b"pack", format="attacks", attack="pgd20"),
    )
    return bundle, (folder / MANIFEST).read_bytes(), tmp_path_factory.mktemp("damaged")


def test_a_bundle_comes_back_as_it_was_written(whole):
    bundle, _, _ = whole
    opened = Bundle.open(bundle.path)
    assert same(opened, bundle) and opened.path.is_absolute()
    assert [opened.checked_path(artifact).read_bytes() for artifact in opened.artifacts] == [
        b"network", b"pinned", b"pack",
    ]  # fmt: skip


def check_damaged(bundle, content, folder):
    """Damage is either invisible in the parsed bundle, or an `InputError` of one line."""
    (folder / MANIFEST).write_bytes(content)
    try:
        opened = Bundle.open(folder)
    except InputError as error:
        assert "\n" not in str(error) and "oat-edge export" in str(error)
    else:
        assert same(opened, bundle)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_flipped_bits_of_the_manifest_are_found_or_harmless(whole, data):
    bundle, content, folder = whole
    damaged = bytearray(content)
    bits = st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=3, unique=True)
    for bit in data.draw(bits):
        damaged[bit // 8] ^= 1 << bit % 8
    check_damaged(bundle, bytes(damaged), folder)


def test_every_single_flipped_bit_of_every_tenth_byte_is_found_or_harmless(whole):
    bundle, content, folder = whole
    for place in range(0, len(content), 10):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            check_damaged(bundle, bytes(damaged), folder)


@settings(deadline=None)
@given(data=st.data())
def test_a_truncated_manifest_is_an_input_error(whole, data):
    _, content, folder = whole
    # Without its last newline it still is the same JSON.
    (folder / MANIFEST).write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])
    with pytest.raises(InputError, match="oat-edge export"):
        Bundle.open(folder)


def forge(content, folder, change):
    """A manifest with another content and the hash that fits it."""
    manifest = json.loads(content)
    del manifest["integrity"]
    change(manifest)
    manifest["integrity"] = _digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *itertools.product(("artifacts", "spec", "run", "checkpoint_sha256"), ("missing",)),
        *itertools.product(("artifacts", "spec"), (None, 3, "text", [3])),
    ],
)
def test_a_forged_manifest_without_a_part_is_an_input_error(key, value, whole):
    _, content, folder = whole

    def change(manifest):
        manifest.pop(key) if value == "missing" else manifest.update({key: value})

    forge(content, folder, change)
    with pytest.raises(InputError):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "../../etc/passwd"},
        {"file": "/etc/passwd"},
        {"file": "sub/w.onnx"},
        {"file": ".."},
        {"file": ""},
        {"file": MANIFEST},
        {"file": 3},
        {"width": "0.5"},
        {"width": 2.0},
        {"width": None},
        {"surprise": 1},
    ],
)
def test_a_forged_artifact_is_an_input_error(changes, whole):
    _, content, folder = whole
    forge(content, folder, lambda manifest: manifest["artifacts"][0].update(changes))
    with pytest.raises(InputError):
        Bundle.open(folder)


@pytest.mark.parametrize("schema", [None, "oat-edge/bundle/2", "oat-edge/bench/1", 1])
def test_another_schema_is_named(schema, whole):
    _, content, folder = whole
    forge(content, folder, lambda manifest: manifest.update(schema=schema))
    with pytest.raises(InputError, match=r"has schema .*expected 'oat-edge/bundle/1'"):
        Bundle.open(folder)


def test_where_there_is_no_bundle_the_error_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match=r"there is no bundle at .*oat-edge export"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(InputError, match=r"there is no bundle manifest at .*oat-edge export"):
        Bundle.open(tmp_path)


@settings(deadline=None)
@given(data=st.data())
def test_any_changed_artifact_is_refused(whole, data):
    bundle, _, folder = whole
    shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
    opened = Bundle.open(folder)
    artifact = data.draw(st.sampled_from(opened.artifacts))
    content = bytearray((folder / artifact.file).read_bytes())
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    (folder / artifact.file).write_bytes(content)
    with pytest.raises(InputError, match=f"{artifact.file} is damaged .*oat-edge export"):
        opened.checked_path(artifact)
    for other in opened.artifacts:
        if other != artifact:
            assert opened.checked_path(other).is_file()


@pytest.mark.parametrize("how", ["gone", "folder"])
def test_a_missing_artifact_is_refused(how, tmp_path):
    bundle = add(tmp_path / "b", write_artifact(tmp_path / "b"))
    (artifact,) = bundle.artifacts
    (bundle.path / artifact.file).unlink()
    if how == "folder":
        (bundle.path / artifact.file).mkdir()
    with pytest.raises(InputError, match="is missing"):
        bundle.checked_path(artifact)


def test_select_takes_the_one_that_fits_and_lists_what_there_is(whole):
    bundle, _, _ = whole
    assert bundle.select(format="onnx", width=1.0).file == "w1.00-fp32.onnx"
    assert bundle.select(format="onnx", pinned_lambda=1.0).file == "w1.00-fp32-lambda1.onnx"
    assert bundle.select(format="attacks", attack="pgd20").file == "attacks.npz"
    for wanted in ({"width": 0.5}, {"pinned_lambda": 0.3}, {"attack": "pgd20"}):
        with pytest.raises(InputError, match=r"attacks\.npz, w1\.00-fp32-lambda1\.onnx, w1"):
            bundle.select(format="onnx", **wanted)


def test_of_format_is_ordered_by_width_and_the_knob_comes_first(tmp_path):
    bundle = add(
        tmp_path / "b",
        write_artifact(tmp_path / "b", "1.onnx", width=1.0, pinned_lambda=0.3),
        write_artifact(tmp_path / "b", "2.onnx", width=1.0),
        write_artifact(tmp_path / "b", "3.onnx", width=0.5),
    )
    assert [a.file for a in bundle.of_format("onnx")] == ["3.onnx", "2.onnx", "1.onnx"]
    assert bundle.of_format("trt") == ()


def test_the_manifest_does_not_depend_on_when_it_is_written(whole):
    bundle, content, folder = whole
    save_manifest(dataclasses.replace(copy.deepcopy(bundle), path=folder))
    assert (folder / MANIFEST).read_bytes() == content
