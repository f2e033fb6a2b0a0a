from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oat_edge.bench.results import Results
from oat_edge.errors import InputError

KEY = {"checkpoint": "c" * 64, "settings": {"seed": 0}}


def filled(path, num=3):
    path.unlink(missing_ok=True)
    results = Results.open(path, KEY, resume=False)
    for index in range(num):
        results.add({"kind": "part", "file": "a", "batch": index, "latency_ns": [1, 2, 3]})
    return results


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_cut_anywhere_the_whole_lines_are_there_and_go_on(path, data):
    filled(path)
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    cut = data.draw(st.integers(first, len(content)))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n") - 2  # less the head and the first session
    again = Results.open(path, KEY, resume=True)
    assert [one["batch"] for one in again.of("part")] == list(range(max(whole, 0)))
    again.add({"kind": "part", "file": "a", "batch": 9})
    assert [one["batch"] for one in Results.peek(path).of("part")] == [*range(max(whole, 0)), 9]
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\x00" * 40, b'{"schema": "other/1"}\n[]\n'])
def test_what_is_no_results_file_is_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match="leave out --resume"):
        Results.open(path, KEY, resume=True)
    assert path.read_bytes() == content


def test_damage_in_the_middle_is_not_taken_for_a_crash(path):
    filled(path)
    content = path.read_bytes().replace(b'"batch": 1', b'"batch"; 1')
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged after 3 lines"):
        Results.open(path, KEY, resume=True)
    assert path.read_bytes() == content


def test_another_key_names_what_differs(path):
    filled(path)
    with pytest.raises(InputError, match=r"another settings\.seed: it was 0, is 1: take the same"):
        Results.open(path, {**KEY, "settings": {"seed": 1}}, resume=True)


def test_without_resume_an_old_file_is_replaced_and_with_it_a_new_one_begun(path):
    assert filled(path).last("part")["batch"] == 2
    assert list(Results.open(path, KEY, resume=False).of("part")) == []
    path.unlink()
    assert Results.open(path, KEY, resume=True).last("session") is not None


def test_records_are_found_by_their_fields(path):
    results = filled(path)
    assert results.last("part", batch=1)["batch"] == 1
    assert results.last("part", batch=7) is None and results.last("memory") is None
    assert [one["batch"] for one in results.of("part", file="a")] == [0, 1, 2]


def test_a_peek_refuses_only_what_it_was_asked_about(path):
    filled(path)
    assert Results.peek(path, {"checkpoint": "c" * 64}).last("part") is not None
    with pytest.raises(InputError, match="another checkpoint"):
        Results.peek(path, {"checkpoint": "d" * 64})


def test_runs_that_measured_nothing_are_no_sessions(path):
    results = filled(path)
    assert len(results.sessions()) == 1
    again = Results.open(path, KEY, resume=True, session={"load": 1})
    again.add({"kind": "facts"})
    assert len(again.sessions()) == 1
    last = Results.open(path, KEY, resume=True, session={"load": 2})
    last.add({"kind": "memory"})
    assert [one.get("load") for one in last.sessions()] == [None, 2]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from oat_edge.bench.results import Results
from oat_edge.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
results = Results.open(path, {}, resume=True)
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 50))
try:
    results.add({"kind": "part", "text": "x" * 200})
except InputError as error:
    print(error)
"""


def test_a_disk_that_fills_within_a_line_leaves_no_half_of_it(path, child_environment):
    Results.open(path, {}, resume=False)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        env=child_environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "make room, then bench --resume" in done.stdout, done
    again = Results.open(path, {}, resume=True)
    again.add({"kind": "part"})
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert len(Results.peek(path).records) == 4  # three sessions and one part
