from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.bench.latency import NS
from oat_edge.bench.throughput import WARMUP_REQUESTS, interrupt_kept, measure_throughput


@given(cost_ms=st.integers(1, 400), batch=st.integers(1, 64), seconds=st.floats(0.0, 2.0))
def test_one_worker_completes_batches_until_the_time_is_over(cost_ms, batch, seconds):
    now_ns = 0

    def call(_):
        nonlocal now_ns
        now_ns += cost_ms * 1_000_000

    found = measure_throughput(
        [call], num_lambdas=1, batch=batch, min_seconds=seconds, clock=lambda: now_ns
    )
    requests = max(1, -(-round(seconds * NS) // (cost_ms * 1_000_000)))
    assert found.images == requests * batch
    assert found.wall_s == pytest.approx(requests * cost_ms / 1e3)
    assert found.images_per_s == pytest.approx(1000 * batch / cost_ms)


def test_warm_up_is_not_counted():
    num_calls = 0

    def call(_):
        nonlocal num_calls
        num_calls += 1

    found = measure_throughput(
        [call], num_lambdas=1, batch=1, min_seconds=0.0, clock=lambda: num_calls * NS
    )
    assert (found.images, num_calls) == (1, WARMUP_REQUESTS + 1)


def test_workers_have_one_request_each_in_flight_at_once():
    """A barrier of 3: it lets requests through only if three of them run at the same time."""
    workers, meet = 3, threading.Barrier(3, timeout=10)
    lock, in_flight, most = threading.Lock(), 0, 0

    def call(_):
        nonlocal in_flight, most
        with lock:
            in_flight += 1
            most = max(most, in_flight)
        meet.wait()
        with lock:
            in_flight -= 1

    # Each look at the clock is a nanosecond later: the time is over at once for every worker.
    ticks = iter(range(10**6))
    found = measure_throughput(
        [call] * workers, num_lambdas=1, batch=2, min_seconds=0.0, clock=lambda: next(ticks)
    )
    assert most == workers
    assert (found.images, found.workers, found.batch) == (workers * 2, workers, 2)
    # One look for the start, then one at the end of each request: the last one counts.
    assert found.wall_s == pytest.approx(workers / NS)


def test_all_completed_images_count_in_real_time():
    lock, num_calls, warm = threading.Lock(), 0, 0

    def call(_):
        nonlocal num_calls
        with lock:
            num_calls += 1
        time.sleep(0.001)

    found = measure_throughput([call] * 2, num_lambdas=1, batch=4, min_seconds=0.02)
    warm = 2 * WARMUP_REQUESTS
    assert found.images == 4 * (num_calls - warm)
    assert found.wall_s >= 0.02


def test_lambda_goes_round():
    seen = []
    measure_throughput(
        [seen.append], num_lambdas=3, batch=1, min_seconds=6.0,
        clock=lambda: len(seen) * NS,
    )  # fmt: skip
    assert seen[WARMUP_REQUESTS:] == [0, 1, 2, 0, 1, 2]


def test_an_error_in_a_worker_is_raised():
    def call(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure_throughput([call] * 2, num_lambdas=1, batch=1, min_seconds=0.0)


def test_an_error_of_one_worker_ends_the_others_and_is_the_one_that_is_told():
    def fails(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure_throughput(
            [lambda _: None, fails, lambda _: None], num_lambdas=1, batch=1, min_seconds=0.0
        )


def test_each_worker_has_its_own_call_and_measures_in_the_thread_that_warmed_up():
    """CUDA graphs of ONNX Runtime belong to a thread: a new one would capture while measured."""
    seen = [[], []]
    calls = [lambda _, mine=mine: mine.append(threading.get_ident()) for mine in seen]
    found = measure_throughput(calls, num_lambdas=1, batch=1, min_seconds=0.01)
    threads = [set(mine) for mine in seen]
    assert [len(one) for one in threads] == [1, 1] and threads[0] != threads[1]
    assert found.images == len(seen[0]) + len(seen[1]) - 2 * WARMUP_REQUESTS


# Prints a line when requests are in flight, then how many of them are when it has ended.
INTERRUPTED = """
import sys, threading, time
from oat_edge.bench.throughput import measure_throughput

in_flight = set()

def call(_):
    in_flight.add(threading.get_ident())
    if len(in_flight) == 3:
        print("running", flush=True)
    time.sleep(0.3)
    in_flight.discard(threading.get_ident())

try:
    measure_throughput(
        [call] * 3, num_lambdas=1, batch=1, min_seconds=3600.0, warmup_s=float(sys.argv[1])
    )
except KeyboardInterrupt:
    print("interrupted, in flight:", len(in_flight), flush=True)
"""


@pytest.mark.parametrize("warmup_s", [0.0, 3600.0])
@pytest.mark.parametrize("presses", [1, 3])
def test_ctrl_c_leaves_no_request_in_flight(child_environment, warmup_s, presses):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(warmup_s)],
        env=child_environment,
        # A suite that a shell runs in the background has inherited that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "running\n"
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert out.splitlines()[-1] == "interrupted, in flight: 0", (out, err)
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize("inside", [lambda: None, lambda: 1 / 0])
def test_the_handler_of_ctrl_c_is_put_back(inside):
    before = signal.getsignal(signal.SIGINT)
    stopped = []
    with pytest.raises(KeyboardInterrupt), interrupt_kept(lambda: stopped.append(True)):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stopped == [True]
        inside()
    assert signal.getsignal(signal.SIGINT) is before
    with interrupt_kept(stopped.clear):
        pass
    assert signal.getsignal(signal.SIGINT) is before and stopped == [True]


def test_where_ctrl_c_is_ignored_it_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt_kept(lambda: None):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_worker_that_cannot_be_started_ends_those_that_were(monkeypatch):
    """The system refuses a thread: the first worker waits for a second that never comes."""
    start, started = threading.Thread.start, []

    def refuse_the_second(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_the_second)
    with pytest.raises(RuntimeError, match="new thread"):
        measure_throughput(
            [lambda _: time.sleep(0.01)] * 2, num_lambdas=1, batch=1, min_seconds=3600.0
        )
    assert not started[0].is_alive()
