"""What a device keeps, in this process; and what it says when it cannot keep it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from oat_edge.bundle import MANIFEST
from oat_edge.errors import BuildError, InputError, OatEdgeError
from oat_edge.files import sha256_file
from oat_edge.remote.bench import Parcel, send_missing
from oat_edge.remote.client import Session
from oat_edge.remote.engines import check_name
from oat_edge.remote.fleet import bench_on
from oat_edge.remote.store import Store, mark_used
from oat_edge.remote.wire import (
    MAGIC,
    Stream,
    WireError,
    error_from_json,
    error_to_json,
    pack,
    plain,
)
from tests.remote.conftest import REQUEST, target_of

DATA = np.random.default_rng(0).bytes(1000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "cache")
    store.clean()
    return store


def test_a_file_comes_in_pieces_and_counts_when_it_is_whole(store):
    assert store.missing({SHA256: 1000}) == {SHA256: 0}
    assert store.put(SHA256, 1000, 0, DATA[:400]) == 400
    assert store.missing({SHA256: 1000}) == {SHA256: 400}
    assert not (store.blobs / SHA256).exists()
    # A piece from behind a gap is not taken; one that overlaps is.
    assert store.put(SHA256, 1000, 900, DATA[900:]) == 400
    assert store.put(SHA256, 1000, 200, DATA[200:700]) == 700
    assert store.put(SHA256, 1000, 700, DATA[700:]) == 1000
    assert (store.blobs / SHA256).read_bytes() == DATA
    assert store.missing({SHA256: 1000}) == {}
    assert store.put(SHA256, 1000, 0, DATA[:10]) == 1000


def test_a_damaged_file_does_not_count(store):
    with pytest.raises(InputError, match="arrived damaged"):
        store.put(SHA256, 1000, 0, DATA[::-1])
    assert store.missing({SHA256: 1000}) == {SHA256: 0}
    store.put(SHA256, 1000, 0, DATA)
    (store.blobs / SHA256).write_bytes(DATA[::-1])  # damaged later, on the disk
    assert store.missing({SHA256: 1000}) == {SHA256: 0}


@pytest.mark.parametrize("text", ["", "../x", "/etc/passwd", "A" * 64, SHA256 + "\n", SHA256[1:]])
def test_only_a_hash_names_a_file(store, text):
    with pytest.raises(InputError, match="expected a sha256"):
        store.missing({text: 1})
    with pytest.raises(InputError, match="expected a sha256"):
        store.put(text, 1, 0, b"x")


def test_a_bundle_is_assembled_without_a_second_copy(store, bundle):
    parcel = Parcel.of(bundle)
    for sha256, path in parcel.paths.items():
        store.put(sha256, path.stat().st_size, 0, path.read_bytes())
    made = store.assemble(parcel.names)
    assert made.artifacts == bundle.artifacts and made.path != bundle.path
    for artifact in made.artifacts:
        assert made.checked_path(artifact).samefile(store.blobs / artifact.sha256)
    # Damage of a file there is mended from what is sent again.
    victim = made.path / made.artifacts[0].file
    victim.write_bytes(b"damaged")
    sha256 = made.artifacts[0].sha256
    assert set(store.missing({sha256: parcel.paths[sha256].stat().st_size})) == {sha256}
    data = parcel.paths[sha256].read_bytes()
    store.put(sha256, len(data), 0, data)
    assert store.assemble(parcel.names).checked_path(made.artifacts[0]).read_bytes() == data


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", "", ".lock"])
def test_a_bundle_has_plain_names_only(store, name):
    names = {MANIFEST: SHA256, name: SHA256}
    with pytest.raises(InputError, match="plain file name"):
        store.assemble(names)


def test_old_parts_and_bundles_go_new_ones_stay(store):
    old = time.time() - 40 * 86400
    (store.blobs / f"{SHA256}.part").write_bytes(b"x")
    (store.blobs / f"{'0' * 64}.part").write_bytes(b"x")
    (store.root / "bundles" / "old").mkdir(parents=True)
    (store.root / "bundles" / "new").mkdir()
    for path in (store.blobs / f"{SHA256}.part", store.root / "bundles" / "old"):
        os.utime(path, (old, old))
    store.clean()
    assert [path.name for path in store.blobs.iterdir()] == [f"{'0' * 64}.part"]
    assert [path.name for path in (store.root / "bundles").iterdir()] == ["new"]


@pytest.mark.parametrize(("largest", "started"), [(600, False), (4000, True)])
def test_a_full_disk_is_one_line(device, bundle, largest, started):
    """While the bundle is sent, and when the bench wants to write."""
    device.stop()
    device.largest_file = largest
    device.run()
    (one,) = bench_on([target_of(device)], bundle, REQUEST).results
    text = str(one.error)
    assert type(one.error) is InputError and "\n" not in text, text
    assert text.startswith(device.host) and "make room" in text and "too large" in text
    assert bool(list(device.cache.glob("bundles/*/manifest.json"))) == started


def test_a_cache_that_cannot_be_written_is_one_line(device, bundle):
    device.cache.parent.write_text("a file where the folder should be")
    (one,) = bench_on([target_of(device)], bundle, REQUEST).results
    assert type(one.error) is InputError and "XDG_CACHE_HOME" in str(one.error)
    assert "\n" not in str(one.error) and "cache" in str(one.error)


def test_two_senders_of_one_file_both_end_with_it_whole(device, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(2).bytes(3_000_000))
    sha256 = sha256_file(path)
    sessions = [Session(target_of(device).host, python=target_of(device).python) for _ in range(2)]
    for session in sessions:
        session.open()
    threads = [
        threading.Thread(target=send_missing, args=(session, {sha256: path}, lambda *_: None))
        for session in sessions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for session in sessions:
        assert session.call("have", sizes={sha256: 3_000_000})[0] == {"missing": {}}
        session.close()
    assert sha256_file(device.cache / "blobs" / sha256) == sha256


def test_messages_arrive_as_they_were_sent_however_they_are_cut():
    sent = [({"a": "λ\n\x00", "n": 1}, b""), ({}, DATA), ({"size_of": [1, 2]}, b"\n\n")]
    data = b"hello\n\xff\n" + MAGIC + pack({"v": 1}) + b"".join(pack(*one) for one in sent)
    for step in (1, 7, len(data)):
        pieces = iter([data[start : start + step] for start in range(0, len(data), step)])
        stream = Stream(lambda pieces=pieces: next(pieces, b""))
        assert stream.greeting()["v"] == 1
        assert [stream.message() for _ in sent] == sent
        with pytest.raises(EOFError):
            stream.message()


@pytest.mark.parametrize("line", [b"[]\n", b"{}\n", b'{"size": -1}\n', b'{"size": 1e99}\n', b"x\n"])
def test_what_is_no_message_is_refused(line):
    pieces = iter([line])
    with pytest.raises(WireError):
        Stream(lambda: next(pieces, b"")).message()


@pytest.mark.parametrize("name", ["x.engine", f"{'a' * 32}.engine.sh", f"../{'a' * 32}.json"])
def test_only_an_engines_name_is_kept_among_them(name):
    with pytest.raises(InputError, match="expected an engine's"):
        check_name(name)


def test_environments_that_nobody_uses_go(store, monkeypatch):
    """Not the one in use, not one of late, and not one that is being built now."""
    old = time.time() - 40 * 86400
    folder = store.root / "env"
    for name in ("mine", "late", "gone", "cut short", "building"):
        (folder / name / "lib").mkdir(parents=True)
        if name not in ("cut short", "building"):
            (folder / name / "ready").touch()
        for path in (folder / name / "ready", folder / name):
            if path.exists():
                os.utime(path, (old, old))
    monkeypatch.setattr(sys, "prefix", str(folder / "mine"))
    mark_used(folder / "late")
    with (folder / "building.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        store.clean()
    left = {path.name for path in folder.iterdir() if path.is_dir()}
    assert left == {"mine", "late", "building"}


def test_every_start_of_the_agent_marks_its_environment(device, tmp_path):
    env = device.folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    (env / "ready").write_text('{"extras": [""]}')
    os.utime(env / "ready", (0, 0))
    (packages,) = env.glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
    session = Session(target_of(device).host, python=str(env / "bin" / "python"))
    session.open()
    session.close()
    assert time.time() - (env / "ready").stat().st_mtime < 60


@pytest.mark.parametrize("text", ["\x1b]52;c;aWQ=\x07", "\x9b2J", "a\nb", "\u202etxt", "\x7f"])
def test_a_terminal_obeys_no_text_of_a_device(text):
    value = plain({text: [text, {"x": text}], "λ €": 1})
    assert json.dumps(value, ensure_ascii=False).isprintable() and value["λ €"] == 1
    error = error_from_json({"class": text, "message": text, "traceback": None}, "orin")
    assert type(error) is OatEdgeError


def test_nesting_without_end_is_no_message():
    for start in (b"", MAGIC):
        pieces = iter([start + b'{"size": 0, "x": ' + b"[" * 200_000 + b"\n", b""])
        stream = Stream(lambda pieces=pieces: next(pieces))
        with pytest.raises(WireError):
            stream.greeting() if start else stream.message()
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(WireError, match="nested"):
        plain(deep)


@pytest.mark.parametrize(
    "name", ["annotations", "__name__", "BuildError", "InputError", "Exception"]
)
def test_an_error_is_one_of_ours_or_a_plain_one(name):
    error = error_from_json({"class": name, "message": "m", "traceback": None}, "orin")
    expected = {"BuildError": BuildError, "InputError": InputError}.get(name, OatEdgeError)
    assert type(error) is expected and str(error) == "orin: m"


def test_a_traceback_keeps_its_lines():
    try:
        raise KeyError("x\x1b[2J")
    except KeyError as error:
        sent = error_to_json(error)
    text = str(error_from_json(plain(sent), "orin"))
    assert text.splitlines()[1].startswith("Traceback") and text.count("\n") > 2
    assert "\x1b" not in text
