"""Latency mode: one request in flight; a warm-up, then the parts of a measurement.

λ goes round its values from request to request. Every recorded sample is kept; none is clipped.
Which configuration has its turn when, `turns` decides.
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
class Part:
    """What one turn of one configuration recorded."""

    latency_ns: Int64
    """(n,) in the order in which the requests ran."""
    start_ns: int
    """On the clock of `time.perf_counter_ns`, which all processes of a machine share."""
    end_ns: int
    device_ms: Float64 | None = None
    """(n, 3) copy to the device, computing, copy back; None where the device has no clock."""


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
    """(n, 3) as in `Part`; None if some part has none."""

    @classmethod
    def of(
        cls, name: str, parts: Sequence[Part], warm_ups: Sequence[WarmUp], num_lambdas: int
    ) -> LatencySamples:
        """One or more parts put together; λ went round over all of them without a gap."""
        latency_ns = np.concatenate([part.latency_ns for part in parts])
        # Some requests only would be a choice among them.
        device = [part.device_ms for part in parts if part.device_ms is not None]
        return cls(
            name=name,
            latency_ns=latency_ns,
            lambda_index=np.arange(len(latency_ns), dtype=np.int64) % num_lambdas,
            warmup_s=sum(warm.seconds for warm in warm_ups),
            warmup_agreed=all(warm.agreed for warm in warm_ups),
            device_ms=np.concatenate(device) if len(device) == len(parts) else None,
        )


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How a warm-up went."""

    seconds: float
    agreed: bool
    median_s: float


def measure_part(
    measurable: Measurable,
    first: int,
    config: BenchConfig,
    *,
    clock: Clock = time.perf_counter_ns,
) -> Part:
    """One turn: a re-warming that is not recorded, then this turn's share of both minimums.

    first: how many requests were recorded before, so that λ goes on going round.
    """
    device: list[DeviceTimes | None] = []
    with gc_paused():
        _run(measurable, first, REWARM_CALLS, config.rewarm_s, clock)
        start_ns = clock()
        samples = _run(
            measurable,
            first,
            math.ceil(config.min_iterations / config.rounds),
            config.min_seconds / config.rounds,
            clock,
            device=device,
        )
    return Part(
        latency_ns=np.array(samples, dtype=np.int64),
        start_ns=start_ns,
        end_ns=clock(),
        device_ms=_device_ms(device),
    )


def warm_up(
    measurable: Measurable, config: BenchConfig, *, clock: Clock = time.perf_counter_ns
) -> WarmUp:
    """Run until `warmup_min_s` has passed and the last windows' medians agree, or to the cap."""
    cap_ns, min_ns = config.warmup_cap_s * NS, config.warmup_min_s * NS
    window_s = config.warmup_min_s / config.windows
    medians: list[float] = []
    num_calls = 0
    with gc_paused():
        start_ns = clock()
        while True:
            left_s = (cap_ns - (clock() - start_ns)) / NS
            window = _run(measurable, num_calls, WINDOW_CALLS, window_s, clock, cap_s=left_s)
            num_calls += len(window)
            medians.append(float(np.median(window)))
            spent_ns = clock() - start_ns
            if ((agreed := _agree(medians, config)) and spent_ns >= min_ns) or spent_ns >= cap_ns:
                return WarmUp(spent_ns / NS, agreed, medians[-1] / NS)


def _agree(medians: Sequence[float], config: BenchConfig) -> bool:
    """Whether the last windows' medians do."""
    recent = medians[-config.windows :]
    spread = max(recent) - min(recent)
    return len(recent) == config.windows and spread <= config.agree * min(recent)


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
