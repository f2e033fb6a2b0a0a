from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.errors import InputError
from oat_edge.files import (
    atomic_path,
    exclusive_lock,
    point_latest,
    read_json,
    sha256_file,
    write_bytes,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_exception_leaves_the_old_file_and_nothing_else(kind, tmp_path):
    path = tmp_path / "weights.bin"
    write_bytes(path, b"old")
    with pytest.raises((kind, InputError)), atomic_path(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise kind("power cut")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["weights.bin"]


def test_until_the_end_readers_see_the_old_file(tmp_path):
    path = tmp_path / "deep" / "er" / "report.json"
    write_bytes(path, b"old")
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".json"
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and names(path.parent) == ["report.json"]


def test_permissions_are_those_of_any_other_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_bytes(tmp_path / "atomic", b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("place", ["folder", "pipe"])
def test_what_is_no_regular_file_is_never_replaced(place, tmp_path):
    path = tmp_path / place
    path.mkdir() if place == "folder" else os.mkfifo(path)
    before = path.stat()
    with pytest.raises(InputError, match="regular file"):
        write_bytes(path, b"x")
    assert os.path.samestat(before, path.stat()) and names(tmp_path) == [place]


@pytest.mark.parametrize("place", ["file/below/x.json", "/proc/nowhere/x.json", "n" * 300])
def test_a_place_that_cannot_be_written_is_one_clear_error(place, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^cannot write .* \(.+\): name a place"):
        write_bytes(tmp_path / place, b"x")
    assert names(tmp_path) == ["file"]


WRITER = """
import sys
from pathlib import Path
from oat_edge.files import write_bytes
for turn in range(60):
    write_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 200_000)
"""


def test_readers_never_see_a_mixture_of_concurrent_writers(tmp_path, child_environment):
    path = tmp_path / "shared"
    write_bytes(path, b"a" * 200_000)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, letter], env=child_environment)
        for letter in "ab"
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        content = path.read_bytes()
        assert len(content) == 200_000 and len(set(content)) == 1
        seen.add(content[:1])
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen == {b"a", b"b"} and names(tmp_path) == ["shared"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(
        st.characters(exclude_categories=["Cs"])), inside),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=40)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values))
def test_json_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path, what="value", remedy="none") == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_a_number_is_not_written(value, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "report.json", {"p50": value})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"a": ', b"[1]", b"3", b"null", b"\xff\xfe", b"\x00" * 9, b"[" * 10**5]
)
def test_damaged_json_is_one_error_that_says_what_to_do(content, tmp_path):
    path = tmp_path / "m.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"manifest .*m\.json .*: export again$"):
        read_json(path, what="manifest", remedy="export again")


def test_missing_json_is_told_from_damaged(tmp_path):
    with pytest.raises(InputError, match=r"^there is no manifest at .*none\.json: export again$"):
        read_json(tmp_path / "none.json", what="manifest", remedy="export again")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path, what="manifest", remedy="export again")


@given(st.binary(max_size=50), st.integers(1, 3))
def test_the_hash_is_that_of_the_content(tmp_path_factory, start, megabytes):
    path = tmp_path_factory.getbasetemp() / "hashed"
    content = (start or b"x") * (megabytes << 10)
    path.write_bytes(content)
    done = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    assert sha256_file(path) == done.stdout.split()[0]


COUNTER = """
import sys
from pathlib import Path
from oat_edge.files import exclusive_lock
folder = Path(sys.argv[1])
for turn in range(100):
    with exclusive_lock(folder):
        number = folder / "number"
        number.write_text(str(int(number.read_text()) + 1))
"""


def test_the_lock_makes_processes_take_turns(tmp_path, child_environment):
    (tmp_path / "number").write_text("0")
    command = [sys.executable, "-c", COUNTER, tmp_path]
    processes = [subprocess.Popen(command, env=child_environment) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "300"


HOLDER = """
import sys
from pathlib import Path
from oat_edge.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_held_lock_is_an_error_at_once_and_free_when_its_holder_is_killed(
    tmp_path, child_environment
):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        env=child_environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(InputError, match="another oat-edge command is writing"),
            exclusive_lock(tmp_path, wait=False),
        ):
            pytest.fail("the lock was given twice")
    finally:
        holder.kill()
        holder.communicate()
    with exclusive_lock(tmp_path, wait=False):
        assert (tmp_path / ".lock").exists()


def test_a_lock_needs_a_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(InputError, match=r"^cannot write .*file \(File exists\)"),
        exclusive_lock(tmp_path / "file"),
    ):
        pytest.fail("a file was locked as a folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_latest_is_a_relative_link_that_moves(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        point_latest(tmp_path / name)
        assert (tmp_path / "latest").readlink().as_posix() == name
    assert names(tmp_path) == ["latest", "one", "two"]


def test_latest_replaces_a_link_to_nowhere(tmp_path):
    (tmp_path / "latest").symlink_to("gone")
    (tmp_path / "run").mkdir()
    point_latest(tmp_path / "run")
    assert (tmp_path / "latest").resolve() == (tmp_path / "run").resolve()


def test_naming_the_newest_by_its_link_does_not_tie_a_knot(tmp_path):
    (tmp_path / "run").mkdir()
    point_latest(tmp_path / "run")
    point_latest(tmp_path / "latest")
    assert (tmp_path / "latest").resolve() == (tmp_path / "run").resolve()


@pytest.mark.parametrize("spelling", [".", "../here", "sub/.."])
def test_latest_names_the_folder_however_it_is_spelt(spelling, tmp_path, monkeypatch):
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    from pathlib import Path

    point_latest(Path(spelling))
    assert (tmp_path / "latest").readlink().as_posix() == "here"


@pytest.mark.parametrize("make", ["mkdir", "touch"])
def test_latest_never_replaces_what_is_no_link(make, tmp_path):
    getattr(tmp_path / "latest", make)()
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="move it away"):
        point_latest(tmp_path / "run")
    assert not (tmp_path / "latest").is_symlink()


def test_writers_in_threads_do_not_meet(tmp_path):
    errors = []

    def write(letter):
        try:
            for _ in range(30):
                write_json(tmp_path / "one.json", {"by": letter * 1000})
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and names(tmp_path) == ["one.json"]
    assert json.loads((tmp_path / "one.json").read_bytes())["by"][0] in "abc"
