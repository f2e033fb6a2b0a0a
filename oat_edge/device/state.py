"""What the monitor saw in spans of time, and what that makes of one cell of a bench."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from oat_edge.device.clock_drop import READINGS, Clock, find_drop, gather

# Fewer independent readings than this are no measurement of power.
MIN_READINGS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Of the readings of one clock within a span."""

    min: float
    median: float
    max: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanState:
    """The machine during one span of time."""

    seconds: float
    mean_w: float | None
    """Mean power; None: no reading lies in the span."""
    power_readings: int
    """Independent readings behind it."""
    clocks_mhz: dict[str, Range]
    """ "cpu" (the fastest core), "gpu" and "emc" (memory), as far as they can be read."""
    temperatures_c: dict[str, float]
    """Highest of each sensor."""
    throttled: tuple[str, ...]
    """What held the clocks down, or counters of such events that rose."""
    clock_readings: dict[str, int] = field(default_factory=dict)
    """How many are behind each of `clocks_mhz`; empty in files from before this was counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorFacts:
    """How the readings were taken."""

    source: str | None
    """None: no power can be read, for `reason`."""
    scope: str | None
    reason: str | None
    averaging_s: float | None
    """A reading is a mean over so long."""
    rate_hz: float
    """Readings per second that were asked for."""
    readings_per_s: float
    """Readings per second that were taken."""
    overhead: float
    """The reading thread's CPU time per second, in seconds: share of one core."""
    reads: tuple[str, ...]
    """Files and functions that are read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Power:
    """Power and energy of one cell; all that the scope covers, nothing taken off."""

    mean_w: float
    idle_w: float | None
    """The same scope at rest, before the measurement."""
    energy_mj: float
    """Millijoules per image."""
    source: str
    scope: str
    rate_hz: float
    """Independent readings per second that were used."""
    num_readings: int


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """The processor that ran, over all parts of one cell."""

    clock_mhz: Range | None
    """Lowest and highest reading, and the median of the parts' medians."""
    temperature_c: float | None
    """Highest."""
    throttled: tuple[str, ...]
    clock_note: str | None = None
    """Why it is not known whether the clock changed between the parts; None: that is known."""


def power_of(
    spans: Sequence[SpanState], *, images: int, facts: MonitorFacts, idle: SpanState | None
) -> tuple[Power | None, str | None]:
    """Power and energy per image over the parts of a cell, or None and why.

    images: how many were run through in all of the parts together.
    """
    if facts.source is None or facts.scope is None:
        return None, facts.reason or "this machine's power cannot be read"
    if not spans or images < 1:
        return None, "nothing was measured while power was read"
    num = sum(span.power_readings for span in spans)
    seconds = sum(span.seconds for span in spans)
    joules = 0.0
    for span in spans:
        if span.mean_w is None:
            return None, _too_short(spans, facts)
        joules += span.mean_w * span.seconds
    if num < MIN_READINGS:
        return None, (
            f"{num} readings of {facts.source} in {seconds:.1f} s, {MIN_READINGS} are needed: "
            "measure longer, without --quick"
        )
    return Power(
        mean_w=joules / seconds,
        idle_w=idle.mean_w if idle is not None else None,
        energy_mj=joules / images * 1000,
        source=facts.source,
        scope=facts.scope,
        rate_hz=num / seconds,
        num_readings=num,
    ), None


def state_of(spans: Sequence[SpanState], *, on_gpu: bool) -> tuple[State, tuple[str, ...]]:
    """State over the parts of a cell, and warnings, each of which makes its row unstable."""
    name, text = ("gpu", "GPU") if on_gpu else ("cpu", "CPU")
    clocks = [span.clocks_mhz[name] for span in spans if name in span.clocks_mhz]
    throttled = tuple(dict.fromkeys(reason for span in spans for reason in span.throttled))
    warnings = [f"throttled: {reason}; cool the board, or lower its clocks" for reason in throttled]
    parts = _parts(spans, name)
    gathered = gather(parts)
    note = _too_few(parts, text) if len(parts) > 1 and len(gathered) < 2 else None
    drop = find_drop(gathered) if len(gathered) > 1 else None
    if drop is not None:
        first, last = drop
        warnings.append(
            f"clocks: the {text} {'rose' if first < last else 'fell'} from {first:.0f} to "
            f"{last:.0f} MHz during the measurement; fix the clocks with --lock-clocks, or cool "
            "the board"
        )
    state = State(
        clock_mhz=_join(clocks) if clocks else None,
        temperature_c=_temperature(spans, name),
        throttled=throttled,
        clock_note=note,
    )
    return state, tuple(warnings)


def _too_short(spans: Sequence[SpanState], facts: MonitorFacts) -> str:
    shortest = min(span.seconds for span in spans)
    if facts.averaging_s and facts.averaging_s >= shortest / 2:
        return (
            f"readings are means over {facts.averaging_s:g} s, the parts last {shortest:.2g} s: "
            "without --quick"
        )
    without = sum(span.mean_w is None for span in spans)
    return (
        f"{without} of {len(spans)} parts, the shortest of {shortest:.2g} s, hold no reading of "
        f"{facts.source}: measure longer, without --quick"
    )


def _parts(spans: Sequence[SpanState], name: str) -> list[Clock]:
    return [
        Clock(clock.min, clock.median, clock.max, span.clock_readings.get(name, READINGS))
        for span in spans
        if (clock := span.clocks_mhz.get(name)) is not None
    ]


def _too_few(parts: Sequence[Clock], text: str) -> str:
    return (
        f"{sum(part.num for part in parts)} readings of the {text}'s clock in {len(parts)} parts, "
        f"{READINGS} each are needed to tell whether it changed: measure longer, without --quick"
    )


def _join(clocks: Sequence[Range]) -> Range:
    return Range(
        min=min(clock.min for clock in clocks),
        median=median([clock.median for clock in clocks]),
        max=max(clock.max for clock in clocks),
    )


def _temperature(spans: Sequence[SpanState], name: str) -> float | None:
    """The processor's own sensor if one bears its name, else the hottest there is."""
    readings = [item for span in spans for item in span.temperatures_c.items()]
    # x86_pkg_temp is what Linux calls the CPU's own sensor on PCs.
    names = (name, "x86_pkg") if name == "cpu" else (name,)
    own = [value for sensor, value in readings if any(part in sensor.lower() for part in names)]
    return max(own or [value for _, value in readings], default=None)
