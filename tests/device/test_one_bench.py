"""Benches in several processes, and of several users, take turns."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oat_edge.device import machine_files, one_bench
from oat_edge.device.one_bench import one_bench_at_a_time

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")

# Runs as another user if one is named; tells what it says, and its turn.
BENCH = """
import os, sys
from oat_edge.device.one_bench import one_bench_at_a_time
if len(sys.argv) > 1:
    os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
os.umask(0o077)
with one_bench_at_a_time(lambda text: print(text, flush=True)):
    print("begins", flush=True)
    sys.stdin.readline()
print("ended", flush=True)
"""
WAITING = "waiting for another bench on this machine to end\n"


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder like /run/lock: pytest's own are closed to other users."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    monkeypatch.setenv(machine_files.VARIABLE, str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    yield folder
    shutil.rmtree(folder)


class Bench:
    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BENCH, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("end\n")
        self.process.stdin.flush()
        assert self.line() == "ended\n"


def test_two_processes_take_turns(locks: Path) -> None:
    with Bench() as first, Bench() as other:
        lines = {bench: bench.line() for bench in (first, other)}
        assert sorted(lines.values()) == ["begins\n", WAITING]
        now, then = sorted(lines, key=lambda bench: lines[bench])
        now.end()
        assert then.line() == "begins\n"
        then.end()


@needs_root
@pytest.mark.parametrize("users", [(0, NOBODY), (NOBODY, 0)])
def test_two_users_take_turns(locks: Path, users: tuple[int, int]) -> None:
    with Bench(users[0]) as first:
        assert first.line() == "begins\n"
        # Whatever the umask of who made it.
        assert stat.S_IMODE((locks / one_bench.NAME).stat().st_mode) == 0o666
        with Bench(users[1]) as second:
            assert second.line() == WAITING
            first.end()
            assert second.line() == "begins\n"
            second.end()


def test_a_killed_bench_lets_the_next_one_begin(locks: Path) -> None:
    with Bench() as killed:
        assert killed.line() == "begins\n"
    with Bench() as bench:
        assert bench.line() == "begins\n"


def said_alone() -> list[str]:
    said: list[str] = []
    with one_bench_at_a_time(said.append):
        pass
    return said


def test_children_do_not_hold_it_longer(locks: Path) -> None:
    with one_bench_at_a_time(pytest.fail):
        started = subprocess.Popen(["sleep", "60"], close_fds=False)
        forked = os.fork()
        if forked == 0:
            time.sleep(60)
            os._exit(0)
    try:
        # This process would wait for ever.
        with Bench() as bench:
            assert bench.line() == "begins\n"
    finally:
        started.kill()
        started.wait()
        os.kill(forked, 9)
        os.waitpid(forked, 0)


def test_an_error_frees_it(locks: Path) -> None:
    with pytest.raises(KeyError), one_bench_at_a_time(pytest.fail):
        raise KeyError
    assert said_alone() == []


def test_a_link_in_its_place_is_not_followed(locks: Path) -> None:
    victim = locks / "victim"
    victim.write_text("precious")
    (locks / one_bench.NAME).symlink_to(victim)
    before = victim.stat()
    assert said_alone() == []
    assert victim.stat() == before
    # The user's own folder has it instead.
    assert (locks / "cache/oat-edge" / one_bench.NAME).is_file()


def test_a_link_to_nothing_makes_no_file(locks: Path) -> None:
    (locks / one_bench.NAME).symlink_to(locks / "made")
    assert said_alone() == [] and not (locks / "made").exists()


def test_a_pipe_in_its_place_does_not_block(locks: Path) -> None:
    os.mkfifo(locks / one_bench.NAME)
    assert said_alone() == []


def test_without_any_lock_it_says_so_and_goes_on(
    locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (locks / "file").write_text("")
    monkeypatch.setenv(machine_files.VARIABLE, str(locks / "file/inside"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(locks / "file"))
    (text,) = said_alone()
    assert "cannot take turns" in text and "Not a directory" in text


def test_it_lies_where_all_users_can_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(machine_files.VARIABLE, raising=False)
    assert machine_files.lock_dirs()[0] == Path("/run/lock")
    assert machine_files.state_dir() == Path("/var/lib/oat-edge")
