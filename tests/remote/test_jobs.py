"""Jobs on a device, in this process; whole ones run in test_fleet.py."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

import pytest

from oat_edge.errors import InputError
from oat_edge.files import write_json
from oat_edge.remote.jobs import ALIVE, END, EVENTS, JOB, RESULT, Jobs

NAME = "a" * 32


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "jobs" / NAME
    (folder / RESULT).mkdir(parents=True)
    write_json(folder / JOB, {"request": {}, "bundle": "", "started": 0.0, "resume": False})
    return folder


@pytest.fixture
def jobs(folder):
    return [Jobs(folder.parent, client=name * 64) for name in "ab"]


def test_a_job_lives_as_long_as_its_process_holds_the_lock(folder, jobs):
    first, _ = jobs
    assert first.state(NAME) == "died" and first.state("b" * 32) == "none"
    hold = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); sys.stdin.read()"  # noqa: E501
    (folder / ALIVE).write_text("1")
    with subprocess.Popen(
        [sys.executable, "-c", hold, folder / ALIVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"1\n"
        assert first.state(NAME) == "running"
        write_json(folder / END, {"ok": True})
        assert first.state(NAME) == "running"  # until it is really gone
        process.kill()
        process.wait()
        assert first.state(NAME) == "finished"
    with (folder / ALIVE).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # looking has left no lock behind


def test_a_job_that_another_client_follows_is_not_stopped(folder, jobs):
    first, second = jobs
    (folder / ALIVE).write_text("0")  # were it signalled, this process's own group would be
    with (folder / ALIVE).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (folder / EVENTS).write_text('{"say": ["a", 0]}\n')
        second.events(NAME, 0, 0.0)
        assert first.stop(NAME) == {"stopped": False, "followed": True}
        assert first.state(NAME) == "running"


def test_events_come_whole_and_in_order(folder, jobs):
    first, _ = jobs
    write_json(folder / END, {"ok": True})
    (folder / EVENTS).write_bytes(b'{"say": ["a", 0]}\n{"say": ["\xce\xbb", 0]}\n{"say": ["cut')
    answer = first.events(NAME, 0, 0.0)
    assert [one["say"][0] for one in answer["events"]] == ["a", "λ"] and "end" not in answer
    with (folder / EVENTS).open("ab") as file:
        file.write(b' off"\n{"progress": [1, 2, "x"]}\n')  # what a reboot has left is skipped
    answer = first.events(NAME, answer["offset"], 0.0)
    assert answer["events"] == [{"progress": [1, 2, "x"]}]
    answer = first.events(NAME, answer["offset"], 0.0)
    assert answer["events"] == [] and answer["end"] == {"ok": True}


def test_a_job_is_removed_when_the_last_client_has_it(folder, jobs):
    first, second = jobs
    write_json(folder / END, {"ok": True})
    for one in jobs:
        one.events(NAME, 0, 0.0)
    first.done(NAME, keep=False)
    assert folder.exists() and second.files(NAME, {}) == []
    second.done(NAME, keep=False)
    assert not folder.exists()
    with pytest.raises(InputError, match="gone from the device"):
        second.events(NAME, 0, 0.0)


def test_a_client_that_has_not_asked_for_long_is_gone(folder, jobs):
    first, second = jobs
    write_json(folder / END, {"ok": True})
    first.events(NAME, 0, 0.0)
    os.utime(folder / "clients" / ("a" * 64), (0, 0))
    second.done(NAME, keep=False)
    assert not folder.exists()


def test_what_was_measured_is_kept_for_resume(folder, jobs):
    first, _ = jobs
    (folder / RESULT / "results.jsonl").write_text("{}\n")
    write_json(folder / END, {"interrupted": True})
    first.done(NAME, keep=True)
    assert first.state(NAME) == "none" and (folder / RESULT / "results.jsonl").exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "/etc", "A" * 32, NAME + "\n"])
def test_only_a_hash_names_a_job(jobs, name):
    with pytest.raises(InputError, match="expected 32 hex digits"):
        jobs[0].state(name)


@pytest.mark.parametrize("name", ["../job.json", "/etc/passwd", ".x", "a/b"])
def test_only_files_of_the_result_are_given_out(folder, jobs, name):
    with pytest.raises(InputError, match="plain file name"):
        jobs[0].read(NAME, name, 0)
