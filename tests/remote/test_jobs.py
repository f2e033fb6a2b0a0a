"""Jobs on a device, in this process; whole ones run in test_fleet.py."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oat_edge.errors import InputError
from oat_edge.files import write_json
from oat_edge.remote import jobs as jobs_module
from oat_edge.remote.bench import WAIT_S, _found
from oat_edge.remote.jobs import ALIVE, CLIENT_S, END, EVENTS, JOB, RESULT, Jobs, job_name

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


REQUEST, MANIFEST = {"width": "1.0"}, "f" * 64
MINE = job_name(REQUEST, MANIFEST)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start the job as a client; its process notes that it ran and ends at once, with a report."""
    run = (
        "import os, pathlib; pathlib.Path('result/report.json').write_text(str(os.getpid())); "
        "pathlib.Path('end.json').write_text('{\"ok\": true}')"
    )
    monkeypatch.setattr(jobs_module, "RUN", run)

    def start(client, *, end=True, **more):
        jobs = Jobs(tmp_path / "jobs", client=client * 64)
        state = jobs.start({**REQUEST, **more}, Path("bundle"), MANIFEST)["state"]
        until = time.monotonic() + 30
        while end and jobs.state(MINE) != "finished":
            assert time.monotonic() < until
            time.sleep(0.01)
        return jobs, state

    return start


def pid(jobs):
    """Of the process that wrote the report that a client gets."""
    return int(jobs.read(MINE, "report.json", 0))


def test_a_result_is_given_to_a_new_client_once(start):
    """A was killed a moment ago, B collects what A started: C measures anew."""
    a, _ = start("a")
    b, state = start("b")
    assert state == "finished" and pid(a) == pid(b)
    b.done(MINE, keep=False)
    c, state = start("c")
    assert state == "none" and pid(c) != pid(a)
    # A comes back after all: it gets what it has started, and takes nothing from C.
    assert a.events(MINE, 0, 0.0)["end"] == {"ok": True}
    assert start("a")[1] == "finished" and pid(a) != pid(c)
    a.done(MINE, keep=False)
    assert [path.name for path in c.root.glob(f"{MINE}*")] == [MINE]
    c.done(MINE, keep=False)
    assert not list(c.root.glob(f"{MINE}*"))


@pytest.mark.parametrize("resume", [False, True])
def test_what_failed_is_not_found_again_either_but_resumed(start, resume):
    start("a")
    b, _ = start("b")
    (b.root / MINE / RESULT / "results.jsonl").write_text("{}\n")
    b.done(MINE, keep=True)
    c, state = start("c", resume=resume)
    assert state == "none" and (c.root / MINE / RESULT / "results.jsonl").exists() == resume


def test_what_moved_aside_goes_when_nobody_comes_for_it(start):
    a, _ = start("a")
    start("b")[0].done(MINE, keep=False)
    c, _ = start("c")
    (mark,) = a.root.glob(f"{MINE}.*/clients/*")
    os.utime(mark, (0, 0))
    start("d")
    assert [path.name for path in c.root.glob(f"{MINE}*")] == [MINE]


def test_a_result_that_nobody_collected_for_a_day_is_too_old(start):
    a, _ = start("a")
    first, day = pid(a), time.time() - 86400
    os.utime(a.root / MINE / END, (day + 600, day + 600))
    assert start("b")[1] == "finished"
    os.utime(a.root / MINE / END, (day - 600, day - 600))
    c, state = start("c")
    assert state == "old" and pid(c) != first


def test_it_is_said_what_became_of_a_result():
    assert _found("old", 0.0, resume=False).endswith(" is too old: measuring anew")
    assert _found("old", 0.0, resume=True).endswith(" is too old: going on with what it has")
    assert "the next command measures anew" in _found("finished", time.time(), resume=False)


def test_a_client_that_follows_is_never_taken_for_gone_nor_a_dead_one_for_long():
    assert 2 * WAIT_S < CLIENT_S <= 30


def test_jobs_that_nobody_asked_for_in_a_month_go(start, tmp_path):
    root = tmp_path / "jobs"
    for name, days in (("1" * 32, 40), ("2" * 32, 20), ("3" * 32, 40)):
        (root / name / RESULT).mkdir(parents=True)
        for path in (root / name / JOB, root / name / ALIVE, root / name / RESULT, root / name):
            if path.suffix or path.name == ALIVE:
                path.write_text("{}")
            os.utime(path, (time.time() - days * 86400,) * 2)
    with (root / ("3" * 32) / ALIVE).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # it runs
        start("a")
    assert {path.name for path in root.iterdir() if path.is_dir()} == {"2" * 32, "3" * 32, MINE}


def test_a_process_is_interrupted_by_its_own_number_only(start, monkeypatch, tmp_path):
    """Until it has written that, `alive` may hold the number of a process that ended long ago."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE,
                          start_new_session=True) as bystander:  # fmt: skip
        write = "import os, sys, time; time.sleep(1); os.write(int(sys.argv[2]), b'%d' % os.getpid()); time.sleep(60)"  # noqa: E501
        monkeypatch.setattr(jobs_module, "RUN", write)
        folder = tmp_path / "jobs" / MINE
        (folder / RESULT).mkdir(parents=True)
        write_json(folder / JOB, {"started": 0.0})  # it died
        (folder / ALIVE).write_text(str(bystander.pid))
        at_start, popen = [], subprocess.Popen

        def look(*arguments, **options):
            at_start.append((folder / ALIVE).read_text())
            return popen(*arguments, **options)

        monkeypatch.setattr(jobs_module.subprocess, "Popen", look)
        jobs, state = start("a", end=False)
        assert state == "died" and at_start == [""]
        assert jobs.stop(MINE) == {"stopped": True, "followed": False}
        assert jobs.state(MINE) == "died" and bystander.poll() is None
        bystander.communicate(b"\n")
        assert bystander.returncode == 0


@pytest.mark.parametrize("name", ["", "..", "../x", "/etc", "A" * 32, NAME + "\n"])
def test_only_a_hash_names_a_job(jobs, name):
    with pytest.raises(InputError, match="expected 32 hex digits"):
        jobs[0].state(name)


@pytest.mark.parametrize("name", ["../job.json", "/etc/passwd", ".x", "a/b"])
def test_only_files_of_the_result_are_given_out(folder, jobs, name):
    with pytest.raises(InputError, match="plain file name"):
        jobs[0].read(NAME, name, 0)
