"""Throughput mode: several requests in flight; nothing of it enters the latency figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from oat_edge.bench.latency import NS, Clock

WARMUP_REQUESTS = 3


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
    call: Callable[[int], None],
    *,
    num_lambdas: int,
    batch: int,
    workers: int,
    min_seconds: float,
    warmup_s: float = 0.0,
    clock: Clock = time.perf_counter_ns,
) -> Throughput:
    """Keep `workers` threads busy, one request in flight each, for at least `min_seconds`.

    call: runs one request of `batch` images at the λ of an index; it must be thread safe and
    release the interpreter's lock. λ goes round in every worker. An error in a worker is raised.
    """

    def work(worker: int, start_ns: int, seconds: float, min_requests: int) -> tuple[int, int]:
        num_requests = 0
        while True:
            call((worker + num_requests) % num_lambdas)
            num_requests += 1
            now_ns = clock()
            if num_requests >= min_requests and now_ns - start_ns >= seconds * NS:
                return num_requests, now_ns

    def all_workers(seconds: float, min_requests: int) -> tuple[int, int]:
        start_ns = clock()
        futures = [
            pool.submit(work, worker, start_ns, seconds, min_requests) for worker in range(workers)
        ]
        results = [future.result() for future in futures]
        last_ns = max(end_ns for _, end_ns in results)
        return sum(num_requests for num_requests, _ in results), last_ns - start_ns

    with ThreadPoolExecutor(workers, thread_name_prefix="throughput") as pool:
        all_workers(warmup_s, WARMUP_REQUESTS)
        num_requests, wall_ns = all_workers(min_seconds, 1)
    return Throughput(
        images=num_requests * batch, wall_s=wall_ns / NS, workers=workers, batch=batch
    )


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
