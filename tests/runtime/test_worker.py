"""Workers are real processes here; the openers below are what they run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from oat_edge.errors import FallbackError, InputError
from oat_edge.runtime.child import ChildFailedError
from oat_edge.runtime.worker import ChildSilentError, Worker

HERE = "tests.runtime.test_worker"


@pytest.fixture(autouse=True)
def found(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


@contextlib.contextmanager
def opener(request, event):
    if request == "refuse":
        raise FallbackError("opened elsewhere")
    if request == "crash":
        raise ZeroDivisionError("while opening")
    print("a library that prints, without a line's end", end="", flush=True)
    try:
        yield lambda question, event: ANSWERS[question[0]](question[1], event)
    finally:
        if isinstance(request, dict):
            Path(request["closed"]).touch()


def refuse(text, _):
    raise InputError(text)


def crash(text, _):
    raise ValueError(text)


def count(num, event):
    for index in range(num):
        event(index)
        time.sleep(0.2)
    return num


ANSWERS = {
    "echo": lambda value, _: value,
    "pid": lambda *_: os.getpid(),
    "refuse": refuse,
    "crash": crash,
    "kill": lambda number, _: os.kill(os.getpid(), number),
    "sleep": lambda seconds, _: time.sleep(seconds),
    "count": count,
    "print": lambda text, _: print(text, flush=True),
}


def open_worker(request="fine"):
    return Worker(f"{HERE}:opener", request)


def ask(worker, *question, silence_s=30.0, **options):
    return worker.ask(question, silence_s=silence_s, **options)


def test_one_process_answers_all_questions():
    with open_worker() as worker:
        pid = ask(worker, "pid", None)
        assert pid == ask(worker, "pid", None) != os.getpid()
        big = ["λ" * 1000, list(range(100_000)), None, 0.1]
        assert ask(worker, "echo", big) == big


def test_what_a_library_prints_is_no_answer():
    with open_worker() as worker:
        assert ask(worker, "print", '["answer", 1]') is None
        assert ask(worker, "echo", 2) == 2


def test_expected_errors_are_raised_here_and_the_worker_goes_on():
    with open_worker() as worker:
        with pytest.raises(InputError, match=r"^no such λ$"):
            ask(worker, "refuse", "no such λ")
        assert ask(worker, "echo", 1) == 1


def test_an_error_while_opening_is_that_of_the_first_question():
    with open_worker("refuse") as worker, pytest.raises(FallbackError, match="opened elsewhere"):
        ask(worker, "echo", 1)
    with open_worker("crash") as worker, pytest.raises(ChildFailedError, match="ZeroDivisionError"):
        ask(worker, "echo", 1)


def test_a_bug_is_told_in_one_line():
    with open_worker() as worker, pytest.raises(ChildFailedError) as error:
        ask(worker, "crash", "two\nlines")
    assert "ValueError: two" in str(error.value)


@pytest.mark.parametrize(
    ("number", "text"),
    [(signal.SIGKILL, "SIGKILL .*memory"), (signal.SIGSEGV, "SIGSEGV"), (signal.SIGABRT, "ABRT")],
)
def test_a_killed_worker_says_by_what(number, text):
    with open_worker() as worker:
        with pytest.raises(ChildFailedError, match=text):
            ask(worker, "kill", int(number))
        with pytest.raises(ChildFailedError, match=text):  # and it stays dead
            ask(worker, "echo", 1)


def test_silence_ends_it_and_events_are_no_silence():
    with open_worker() as worker:
        ask(worker, "echo", 1)  # opening takes its time
        heard = []
        assert ask(worker, "count", 5, silence_s=0.8, event=heard.append) == 5
        assert heard == [0, 1, 2, 3, 4]
        with pytest.raises(ChildSilentError, match=r"nothing for 0\.3 s"):
            ask(worker, "sleep", 60, silence_s=0.3)


def test_closing_lets_an_idle_worker_close_what_is_open(tmp_path):
    with open_worker({"closed": str(tmp_path / "closed")}) as worker:
        ask(worker, "echo", 1)
    assert (tmp_path / "closed").exists()


def test_closing_does_not_wait_for_work():
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), open_worker() as worker:
        ask(worker, "echo", 1)
        threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
        ask(worker, "sleep", 60)
    assert time.monotonic() - started < 20


ORPHAN = """
import os, sys, time
from tests.runtime.test_worker import open_worker, ask
worker = open_worker()
print(ask(worker, "pid", None), flush=True)
ask(worker, "sleep", 60)
"""


def test_a_worker_at_work_ends_with_its_parent(child_environment):
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], env=child_environment, stdout=subprocess.PIPE
    )
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the worker is still there")
