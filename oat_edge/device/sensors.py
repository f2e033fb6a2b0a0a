"""Clocks, temperatures and throttling of a machine, cheap enough to be read many times a second.

The names of files are found once; what cannot be read at some moment is missing in that reading.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

from oat_edge.device.jetson import gpu_devfreq
from oat_edge.device.kept_open import KeptOpen
from oat_edge.device.power import GpuBoard
from oat_edge.device.state import Range
from oat_edge.device.system import System

CPU_CLOCKS = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
# Of PCs: how often a core was slowed down for heat.
CPU_THROTTLES = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"
# Memory's clock, which only root can read.
EMC_CLOCK = "sys/kernel/debug/bpmp/debug/clk/emc/rate"
THERMAL_ZONES = "sys/class/thermal/thermal_zone*/type"
# NVIDIA's developer guide for Orin and Thor, "Over-Current Throttling".
OVER_CURRENT = "sys/class/hwmon/hwmon*/oc[0-9]*_event_cnt"
OC_EVENTS = {
    "oc1": "under-voltage (oc1)",
    "oc2": "average over-current (oc2)",
    "oc3": "instantaneous over-current (oc3)",
}
# So few counters are read as often as the clocks, and tell when they rose: a Jetson has three.
FEW_FILES = 8
# Sensors that are off answer with nonsense such as -256 °C.
COLDEST_C = -40.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Moment:
    """The machine at one moment; what could not be read then is not there."""

    clocks_mhz: dict[str, float]
    temperatures_c: dict[str, float]
    active: tuple[str, ...] = ()
    """What holds the clocks down just now."""
    counts: dict[str, float] = field(default_factory=dict)
    """How often something did so far."""


class Sensors:
    """What can be read of one machine.

    `quick` is a file or a call or two, `cores` a file per core, `slow` is the rest.
    """

    def __init__(self, system: System, board: GpuBoard | None) -> None:
        self._system, self._board = system, board
        folder = gpu_devfreq(system)
        self._gpu = None if folder is None else f"{folder}/cur_freq"
        self._emc = next(iter(_readable(system, [EMC_CLOCK])), None)
        self._cores = KeptOpen(system, _readable(system, system.glob(CPU_CLOCKS)))
        self._zones = _zones(system)
        self._counters = _counters(system)
        self._few = sum(map(len, self._counters.values())) <= FEW_FILES
        files = [self._gpu, self._emc, *self._cores.names, *self._zones.values()]
        files += [name for names in self._counters.values() for name in names]
        calls = [] if board is None else [
            "nvmlDeviceGetClockInfo", "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetTemperature",
        ]  # fmt: skip
        self.reads = (*_patterns([name for name in files if name is not None]), *calls)

    @property
    def num_cores(self) -> int:
        """Of those whose clock can be read."""
        return len(self._cores.names)

    def quick(self) -> Moment:
        """Clocks of GPU and memory, what holds them down, few counters of such events."""
        clocks: dict[str, float] = {}
        if self._gpu is not None:
            _put(clocks, "gpu", self._system.number(self._gpu), 1e-6)
        if self._emc is not None:
            _put(clocks, "emc", self._system.number(self._emc), 1e-6)
        active: tuple[str, ...] = ()
        if self._board is not None:
            _put(clocks, "gpu", _ask(self._board.clock_mhz))
            active = _ask(self._board.throttled) or ()
        return Moment(clocks, {}, active, self._counts() if self._few else {})

    def cores(self) -> Moment:
        """Clock of the fastest core: the others may be idle."""
        clocks: dict[str, float] = {}
        _put(clocks, "cpu", max(self._cores.numbers(), default=None), 1e-3)
        return Moment(clocks, {})

    def close(self) -> None:
        """Free what is kept open between readings."""
        self._cores.close()

    def slow(self) -> Moment:
        """Temperatures, many counters of throttling."""
        temperatures: dict[str, float] = {}
        for sensor, name in self._zones.items():
            # A zone that is switched off answers EAGAIN.
            _put(temperatures, sensor, self._system.number(name), 1e-3)
        if self._board is not None:
            _put(temperatures, "gpu", _ask(self._board.temperature_c))
        warm = {name: value for name, value in temperatures.items() if value > COLDEST_C}
        return Moment({}, warm, counts={} if self._few else self._counts())

    def _counts(self) -> dict[str, float]:
        counts: dict[str, float] = {}
        for reason, names in self._counters.items():
            values = [self._system.number(name) for name in names]
            known = [value for value in values if value is not None]
            if len(known) == len(values):  # a part of a sum would look like a fall, then a rise
                counts[reason] = sum(known)
        return counts


def clocks(moments: Sequence[Moment]) -> dict[str, list[float]]:
    """Readings of each clock."""
    clocks: dict[str, list[float]] = {}
    for moment in moments:
        for name, clock in moment.clocks_mhz.items():
            clocks.setdefault(name, []).append(clock)
    return clocks


def range_of(values: Sequence[float]) -> Range:
    """Of one clock's readings."""
    return Range(min=min(values), median=median(values), max=max(values))


def highest(moments: Sequence[Moment]) -> dict[str, float]:
    """Of each temperature sensor."""
    highest: dict[str, float] = {}
    for moment in moments:
        for sensor, value in moment.temperatures_c.items():
            highest[sensor] = max(value, highest.get(sensor, value))
    return highest


def rose(moments: Sequence[Moment]) -> list[str]:
    """Counters that were higher at the end than at the start."""
    counts: dict[str, list[float]] = {}
    for moment in moments:
        for reason, count in moment.counts.items():
            counts.setdefault(reason, []).append(count)
    return [
        f"{reason}, {values[-1] - values[0]:.0f} times"
        for reason, values in counts.items()
        if values[-1] > values[0]
    ]


def _put(into: dict[str, float], name: str, value: float | None, factor: float = 1.0) -> None:
    if value is not None:
        into[name] = value * factor


def _ask(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except OSError:
        return None


def _readable(system: System, names: list[str]) -> list[str]:
    return [name for name in names if system.number(name) is not None]


def _patterns(names: list[str]) -> list[str]:
    """Many files of one kind, such as one per core, as one pattern."""
    return list(dict.fromkeys(re.sub(r"(cpu|zone|hwmon|oc)\d+", r"\1*", name) for name in names))


def _zones(system: System) -> dict[str, str]:
    """Sensor -> file.  Zones that are off now may be on later: all are kept."""
    zones: dict[str, str] = {}
    for file in system.glob(THERMAL_ZONES):
        folder = file.removesuffix("/type")
        sensor = system.read(file) or folder.rpartition("/")[2]
        # PCs have several of one type ("acpitz").
        if sensor in zones:
            sensor = f"{sensor} ({folder.rpartition('thermal_zone')[2]})"
        zones[sensor] = f"{folder}/temp"
    return zones


def _counters(system: System) -> dict[str, list[str]]:
    """Reason -> files whose sum counts it."""
    counters: dict[str, list[str]] = {}
    for name in _readable(system, system.glob(OVER_CURRENT)):
        event = name.rpartition("/")[2].removesuffix("_event_cnt")
        counters.setdefault(OC_EVENTS.get(event, event), []).append(name)
    cores = _readable(system, system.glob(CPU_THROTTLES))
    if cores:
        counters["CPU too hot (core_throttle_count)"] = cores
    return counters
