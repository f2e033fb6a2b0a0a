"""Throughput mode: several requests in flight; nothing of it enters the latency figures."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

from oat_edge.bench.latency import NS, Clock

WARMUP_REQUESTS = 3
# Looking for it more often would disturb what is being measured.
LOOK_S = 0.5


class StoppedError(Exception):
    """A worker was told to stop before its time was over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """Images finished in a span of wall time."""

    images: int
    wall_s: float
    """From the first request's start to the last one's end."""
    workers: int
    batch: int

    @property
    def images_per_s(self) -> float:
        """Images per second over all workers."""
        return self.images / self.wall_s


def measure_throughput(
    calls: Sequence[Callable[[int], None]],
    *,
    num_lambdas: int,
    batch: int,
    min_seconds: float,
    warmup_s: float = 0.0,
    clock: Clock = time.perf_counter_ns,
) -> Throughput:
    """Keep a thread per call busy, one request in flight each, for at least `min_seconds`.

    calls: one per worker, each of which runs one request of `batch` images at the λ of an index;
    they must release the interpreter's lock, and the same one given twice must be thread safe.
    A worker warms up in the thread that measures, and all begin at once. λ goes round in every
    worker. An error in a worker is raised. However this ends, by Ctrl-C too, no request is in
    flight afterwards: what the calls use may be closed.
    """
    start_ns = 0
    stopped = False

    def begin() -> None:
        nonlocal start_ns
        start_ns = clock()

    def stop() -> None:
        nonlocal stopped
        stopped = True

    ready = threading.Barrier(len(calls), action=begin)

    def requests(worker: int, since_ns: int, seconds: float, min_requests: int) -> tuple[int, int]:
        num_requests = 0
        while True:
            calls[worker]((worker + num_requests) % num_lambdas)
            num_requests += 1
            if stopped:
                raise StoppedError
            now_ns = clock()
            if num_requests >= min_requests and now_ns - since_ns >= seconds * NS:
                return num_requests, now_ns

    def work(worker: int) -> tuple[int, int]:
        try:
            requests(worker, clock(), warmup_s, WARMUP_REQUESTS)
        except BaseException:
            ready.abort()  # nobody waits for this worker
            raise
        ready.wait()
        return requests(worker, start_ns, min_seconds, 1)

    # The pool's end waits for the workers; nothing may interrupt that.
    with interrupt_kept(stop), ThreadPoolExecutor(len(calls), "throughput") as pool:
        try:
            futures = [pool.submit(work, worker) for worker in range(len(calls))]
            results = _results(futures)
        except BaseException:
            stop()
            ready.abort()  # a worker that never came is not waited for
            raise
    last_ns = max(end_ns for _, end_ns in results)
    return Throughput(
        images=sum(num_requests for num_requests, _ in results) * batch,
        wall_s=(last_ns - start_ns) / NS,
        workers=len(calls),
        batch=batch,
    )


def _results(futures: Sequence[Future[tuple[int, int]]]) -> list[tuple[int, int]]:
    """What the workers returned; raises the first error that is not just another's."""
    # A Ctrl-C that comes just before this thread goes to sleep would not wake it.
    while wait(futures, timeout=LOOK_S).not_done:
        pass
    errors = [future.exception() for future in futures]
    followed = (threading.BrokenBarrierError, StoppedError)
    real = [e for e in errors if e is not None and not isinstance(e, followed)]
    for error in real:
        raise error
    return [future.result() for future in futures]


@contextmanager
def interrupt_kept(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, Ctrl-C does not break into what runs: it calls `stop`, and is raised at the end.

    stop: takes no lock, for it runs in the midst of anything.
    """
    on_main = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT) if on_main else None
    if previous in (None, signal.SIG_IGN):  # then there is no Ctrl-C here
        yield
        return
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True
        stop()

    signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if pressed:
            raise KeyboardInterrupt


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
