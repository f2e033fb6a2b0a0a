"""Power, clocks, temperatures and throttling read beside a measurement, by a thread of its own.

The measuring processes are others, so that the thread costs them nothing but its CPU time; spans
are named by time.perf_counter_ns(), which is one clock for all processes of a machine.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left, bisect_right
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np

from oat_edge.device.energy import mean_of_joules, mean_of_watts
from oat_edge.device.jetson import is_jetson
from oat_edge.device.power import GpuBoard, NvmlSource, PowerSource, power_source
from oat_edge.device.sensors import Moment, Sensors, clocks, highest, range_of, rose
from oat_edge.device.state import MonitorFacts, SpanState
from oat_edge.device.system import System
from oat_edge.errors import DependencyError

HERE = System()
NS = 1_000_000_000
# Temperatures change slowly, and there are many of them.
SLOW_HZ = 4.0
# The clock of a CPU that runs the networks is read twice as often as the rest: parts of --quick
# last 0.25 s and need 6 readings or more (clock_drop.py).
CORES_RATE = 2
# With more than 64 cores less often.
CORE_READINGS_PER_S = 64 * 40
# A counter that stands still for a while tells when it is renewed only as exactly as it is read.
COUNTER_READINGS = 5
# A counter's value before and after a span is looked for so far around it.
AROUND_S = 2.0
# Older readings are dropped: spans are asked for soon after they end.
KEEP_S = 1800.0
STOP_S = 0.2
T = TypeVar("T")


class Monitor:
    """Reads from `with` on.  on_gpu: the GPU runs the networks, not the CPU.

    What cannot be read is missing in its answers and ends nothing; `reason` says why there is no
    power at all.
    """

    def __init__(self, system: System = HERE, *, on_gpu: bool, rate_hz: float = 20.0) -> None:
        self.source: PowerSource | None
        self.source, self.reason = power_source(system, on_gpu=on_gpu)
        self.rate_hz = rate_hz
        self._sensors = Sensors(system, _board(system, self.source) if on_gpu else None)
        self._parts, self._cores_every = self._plan(on_gpu=on_gpu)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="oat-edge monitor", daemon=True)
        self._power = _Track[float]()
        self._quick = _Track[Moment]()
        self._cores = _Track[Moment]()
        self._slow = _Track[Moment]()
        self._last_step_ns = 0
        self._num_readings = 0
        self._started_ns = self._seen_ns = time.perf_counter_ns()
        self._cpu_s = 0.0

    def __enter__(self) -> Monitor:
        self._started_ns = self._seen_ns = time.perf_counter_ns()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        # A file that blocks (a dead I2C bus) must not keep the program from ending.
        self._thread.join(STOP_S)

    def idle(self, seconds: float) -> SpanState:
        """Wait so long, and say what was seen: the machine at rest, if nothing else runs."""
        start_ns = time.perf_counter_ns()
        time.sleep(seconds)
        return self.span(start_ns, time.perf_counter_ns())

    def span(self, start_ns: int, end_ns: int) -> SpanState:
        """What was seen between two values of time.perf_counter_ns().

        Waits up to two periods of the readings until they cover the end.
        """
        self._wait_for(end_ns)
        with self._lock:
            quick = self._quick.within(start_ns, end_ns, slack_ns=int(2 * NS / self.rate_hz))
            slack_ns = int(2 * NS / self.rate_hz / self._parts * self._cores_every)
            cores = self._cores.within(start_ns, end_ns, slack_ns=slack_ns)
            slow = self._slow.within(start_ns, end_ns, slack_ns=int(2 * NS / SLOW_HZ))
            # Only one of them has counts.
            counts = [*self._quick.around(start_ns, end_ns), *self._slow.around(start_ns, end_ns)]
        mean_w, num = self._mean_power(start_ns, end_ns)
        moments = [*quick, *cores, *slow]
        read = clocks(moments)
        active = [reason for moment in moments for reason in moment.active]
        return SpanState(
            seconds=(end_ns - start_ns) / NS,
            mean_w=mean_w,
            power_readings=num,
            clocks_mhz={name: range_of(values) for name, values in read.items()},
            temperatures_c=highest(moments),
            throttled=tuple(dict.fromkeys([*active, *rose(counts)])),
            clock_readings={name: len(values) for name, values in read.items()},
        )

    def facts(self) -> MonitorFacts:
        """How the readings were taken so far."""
        with self._lock:
            seconds = max((self._seen_ns - self._started_ns) / NS, 1e-9)
            num, cpu_s = self._num_readings, self._cpu_s
        source = self.source
        return MonitorFacts(
            source=source.name if source else None,
            scope=source.scope if source else None,
            reason=self.reason,
            averaging_s=source.averaging_s if source else None,
            rate_hz=self.rate_hz,
            readings_per_s=num / seconds,
            overhead=cpu_s / seconds,
            reads=(*(source.reads if source else ()), *self._sensors.reads),
        )

    def _plan(self, *, on_gpu: bool) -> tuple[int, int]:
        """Into how many ticks a period of the readings is divided; ticks per look at the cores."""
        counter = self.source is not None and self.source.counter
        parts = COUNTER_READINGS if counter else 1 if on_gpu else CORES_RATE
        ticks_hz, num = self.rate_hz * parts, max(1, self._sensors.num_cores)
        cores_hz = SLOW_HZ if on_gpu else CORES_RATE * self.rate_hz
        cores_hz = min(cores_hz, CORE_READINGS_PER_S / num)
        return parts, max(1, math.ceil(ticks_hz / cores_hz - 1e-9))

    def _run(self) -> None:
        try:
            self._read_on()
        finally:
            self._sensors.close()

    def _read_on(self) -> None:
        cpu_start_s = time.thread_time()
        counter = self.source is not None and self.source.counter
        parts = self._parts
        slow_every = max(1, round(self.rate_hz / SLOW_HZ)) * parts
        period_s = 1 / self.rate_hz / parts
        due_s, tick = time.perf_counter(), 0
        while not self._stop.is_set():
            full = tick % parts == 0
            if counter or full:
                self._read_power()
            if full:
                self._put(self._quick, self._sensors.quick())
            if tick % self._cores_every == 0:
                self._put(self._cores, self._sensors.cores())
            if tick % slow_every == 0:
                self._put(self._slow, self._sensors.slow())
            tick += 1
            with self._lock:
                self._num_readings += counter or full
                self._seen_ns = time.perf_counter_ns()
                self._cpu_s = time.thread_time() - cpu_start_s
            # Readings that take longer than the period come less often; the thread still rests.
            due_s = max(due_s + period_s, time.perf_counter() + period_s / 10)
            self._stop.wait(due_s - time.perf_counter())

    def _read_power(self) -> None:
        if self.source is None:
            return
        before_ns = time.perf_counter_ns()
        try:
            value = self.source.read()
        except OSError:
            return  # this reading is missing, the next may be there
        # Reading chips on an I2C bus takes milliseconds: the middle is when it was true.
        time_ns = (before_ns + time.perf_counter_ns()) // 2
        with self._lock:
            if value != self._power.newest:
                self._last_step_ns = time_ns
            self._power.add(time_ns, value)

    def _put(self, track: _Track[T], value: T) -> None:
        with self._lock:
            track.add(time.perf_counter_ns(), value)

    def _wait_for(self, end_ns: int) -> None:
        source, period_s = self.source, 1 / self.rate_hz
        longest_s = period_s
        if source is not None:
            longest_s = max(longest_s, source.averaging_s, self._step_s() if source.counter else 0)
        until_s = time.monotonic() + 2 * longest_s
        while time.monotonic() < until_s and self._thread.is_alive():
            with self._lock:
                seen_ns = [self._quick.newest_ns]
                if source is not None:
                    seen_ns.append(self._last_step_ns if source.counter else self._power.newest_ns)
            if min(seen_ns) >= end_ns:
                return
            time.sleep(period_s / 4)

    def _step_s(self) -> float:
        """How long a counter stood still between two values, at most, of late."""
        with self._lock:
            now_ns = time.perf_counter_ns()
            times_ns, values = self._power.between(now_ns - int(AROUND_S * NS), now_ns)
        new_ns = np.asarray(times_ns, dtype=np.int64)[1:][np.diff(values) != 0]
        return float(np.max(np.diff(new_ns), initial=0)) / NS

    def _mean_power(self, start_ns: int, end_ns: int) -> tuple[float | None, int]:
        if self.source is None:
            return None, 0
        around_ns = int(AROUND_S * NS) if self.source.counter else 0
        with self._lock:
            times_ns, values = self._power.between(start_ns - around_ns, end_ns + around_ns)
        # Seconds since the span's start keep their digits in float64.
        times_s = (np.asarray(times_ns, dtype=np.int64) - start_ns) / NS
        readings, end_s = np.asarray(values, dtype=np.float64), (end_ns - start_ns) / NS
        if self.source.counter:
            return mean_of_joules(times_s, readings, 0.0, end_s)
        averaging_s = self.source.averaging_s
        return mean_of_watts(times_s, readings, 0.0, end_s, averaging_s=averaging_s)


class _Track(Generic[T]):
    """Readings with their times, in the order in which they were taken."""

    def __init__(self) -> None:
        self._times_ns: list[int] = []
        self._values: list[T] = []

    @property
    def newest(self) -> T | None:
        return self._values[-1] if self._values else None

    @property
    def newest_ns(self) -> int:
        return self._times_ns[-1] if self._times_ns else 0

    def add(self, time_ns: int, value: T) -> None:
        self._times_ns.append(time_ns)
        self._values.append(value)
        # By halves, so that the lists are not moved at each reading.
        if time_ns - self._times_ns[0] > 2 * KEEP_S * NS:
            old = bisect_left(self._times_ns, time_ns - int(KEEP_S * NS))
            del self._times_ns[:old], self._values[:old]

    def between(self, start_ns: int, end_ns: int) -> tuple[list[int], list[T]]:
        """Readings of a span, both ends included."""
        span = slice(bisect_left(self._times_ns, start_ns), bisect_right(self._times_ns, end_ns))
        return self._times_ns[span], self._values[span]

    def within(self, start_ns: int, end_ns: int, *, slack_ns: int) -> list[T]:
        """Readings of a span; if it holds none, the last one before it, if not too old."""
        _, values = self.between(start_ns, end_ns)
        return values or self.between(start_ns - slack_ns, end_ns)[1][-1:]

    def around(self, start_ns: int, end_ns: int) -> list[T]:
        """Readings of a span, and the last one before it and the first one after it."""
        first = max(0, bisect_right(self._times_ns, start_ns) - 1)
        return self._values[first : bisect_left(self._times_ns, end_ns) + 1]


def _board(system: System, source: PowerSource | None) -> GpuBoard | None:
    """NVML, where it tells something: not on a Jetson, not of a recorded tree."""
    if isinstance(source, NvmlSource):
        return source.board
    if system.recorded or is_jetson(system):
        return None
    try:
        return GpuBoard()
    except DependencyError:
        return None
