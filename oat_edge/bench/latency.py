"""Latency mode: one request in flight, configurations taking turns (DESIGN, section 7).

A measurement is cut into rounds A B C A B C …, so that a drift of the clocks hits all
configurations alike. λ goes round its values from request to request. Every recorded sample is
kept; none is clipped.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oat_edge.bench.config import BenchConfig
from oat_edge.runtime.runner import DeviceTimes

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Clock = Callable[[], int]
"""Monotonic time in ns."""
Progress = Callable[[float, float, str], None]
"""Called between measurements with seconds done, estimated seconds in total, and a label."""

NS = 1_000_000_000
# Three windows of 7 calls: no warm-up has fewer than 21, however slow the network.
WINDOW_CALLS = 7
REWARM_CALLS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurable:
    """One configuration: something that runs one request and returns when it is done."""

    name: str
    call: Callable[[int], None]
    """Runs one request at the λ of this index, in [0, num_lambdas)."""
    num_lambdas: int = 1
    device_times: Callable[[], DeviceTimes | None] | None = None
    """What the last request took on the device; asked for after it, outside the timed span."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencySamples:
    """All recorded requests of one configuration, in the order in which they ran."""

    name: str
    latency_ns: Int64
    """(n,)"""
    lambda_index: Int64
    """(n,) which λ each request had."""
    warmup_s: float
    warmup_agreed: bool
    """False: the warm-up reached its cap before the windows agreed."""
    device_ms: Float64 | None = None
    """(n, 3) copy to the device, computing, copy back; None where the device has no clock."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How a warm-up went."""

    seconds: float
    agreed: bool
    median_s: float


def measure(
    measurables: Sequence[Measurable],
    config: BenchConfig,
    *,
    clock: Clock = time.perf_counter_ns,
    progress: Progress | None = None,
) -> list[LatencySamples]:
    """Warm up every configuration, then record all of them in interleaved rounds.

    Each gets at least `config.min_seconds` and at least `config.min_iterations` recorded requests.
    """
    start_ns = clock()
    warm: dict[int, WarmUp] = {}
    samples: list[list[int]] = [[] for _ in measurables]
    device: list[list[DeviceTimes | None]] = [[] for _ in measurables]

    def report(rounds_done: int, turn: int, label: str) -> None:
        if progress is not None:
            done_s = (clock() - start_ns) / NS
            left_s = _seconds_left(len(measurables), warm, rounds_done, turn, config)
            progress(done_s, done_s + left_s, label)

    for turn, measurable in enumerate(measurables):
        report(0, 0, f"warm-up {measurable.name}")
        with gc_paused():
            warm[turn] = warm_up(measurable, config, clock=clock)
    for round_index in range(config.rounds):
        for turn, measurable in enumerate(measurables):
            report(round_index, turn, f"latency {measurable.name}")
            with gc_paused():
                first = len(samples[turn])
                _run(measurable, first, REWARM_CALLS, config.rewarm_s, clock)
                samples[turn] += _run(
                    measurable,
                    first,
                    math.ceil(config.min_iterations / config.rounds),
                    config.min_seconds / config.rounds,
                    clock,
                    device=device[turn],
                )
    report(config.rounds, 0, "latency")
    return [
        LatencySamples(
            name=measurable.name,
            latency_ns=np.array(samples[turn], dtype=np.int64),
            lambda_index=np.arange(len(samples[turn]), dtype=np.int64) % measurable.num_lambdas,
            warmup_s=warm[turn].seconds,
            warmup_agreed=warm[turn].agreed,
            device_ms=_device_ms(device[turn]),
        )
        for turn, measurable in enumerate(measurables)
    ]


def warm_up(
    measurable: Measurable, config: BenchConfig, *, clock: Clock = time.perf_counter_ns
) -> WarmUp:
    """Run until `warmup_min_s` has passed and the last windows' medians agree, or to the cap."""
    start_ns = clock()
    cap_ns, min_ns = config.warmup_cap_s * NS, config.warmup_min_s * NS
    window_s = config.warmup_min_s / config.windows
    medians: list[float] = []
    num_calls = 0
    while True:
        left_s = (cap_ns - (clock() - start_ns)) / NS
        window = _run(measurable, num_calls, WINDOW_CALLS, window_s, clock, cap_s=left_s)
        num_calls += len(window)
        medians.append(float(np.median(window)))
        spent_ns = clock() - start_ns
        recent = medians[-config.windows :]
        agreed = len(recent) == config.windows and max(recent) - min(recent) <= config.agree * min(
            recent
        )
        if (agreed and spent_ns >= min_ns) or spent_ns >= cap_ns:
            return WarmUp(spent_ns / NS, agreed, medians[-1] / NS)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Collect garbage now, keep the collector off inside, and leave it as it was found."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run(
    measurable: Measurable,
    first: int,
    min_calls: int,
    min_s: float,
    clock: Clock,
    cap_s: float = math.inf,
    device: list[DeviceTimes | None] | None = None,
) -> list[int]:
    """Run requests first, first + 1, … until both minimums hold or the cap is reached; ns each.

    device: gets what each request took on the device, of a measurable that knows.
    """
    call, num_lambdas = measurable.call, measurable.num_lambdas
    ask = measurable.device_times if device is not None else None
    min_ns, cap_ns = min_s * NS, cap_s * NS
    samples: list[int] = []
    start_ns = clock()
    while True:
        lambda_index = (first + len(samples)) % num_lambdas
        before_ns = clock()
        call(lambda_index)
        after_ns = clock()
        samples.append(after_ns - before_ns)
        if ask is not None and device is not None:
            device.append(ask())
        spent_ns = after_ns - start_ns
        if (len(samples) >= min_calls and spent_ns >= min_ns) or spent_ns >= cap_ns:
            return samples


def _device_ms(times: Sequence[DeviceTimes | None]) -> Float64 | None:
    known = [(one.h2d_ms, one.compute_ms, one.d2h_ms) for one in times if one is not None]
    # Some requests only would be a choice among them.
    return np.array(known) if known and len(known) == len(times) else None


def _seconds_left(
    num: int, warm: dict[int, WarmUp], rounds_done: int, turn: int, config: BenchConfig
) -> float:
    """Estimate from the warm-ups that are done; the others count as short and fast."""
    left_s = (num - len(warm)) * 2 * config.warmup_min_s
    for index in range(num):
        median_s = warm[index].median_s if index in warm else 0.0
        per_round_s = max(config.min_seconds, config.min_iterations * median_s) / config.rounds
        rounds_left = config.rounds - rounds_done - (index < turn)
        left_s += rounds_left * (per_round_s + max(config.rewarm_s, REWARM_CALLS * median_s))
    return left_s
