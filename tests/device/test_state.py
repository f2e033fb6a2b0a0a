import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.bench.schema import dump, load
from oat_edge.device.state import MonitorFacts, Power, Range, SpanState, State, power_of, state_of


def span(**changes: object) -> SpanState:
    plain = SpanState(
        seconds=1.0,
        mean_w=10.0,
        power_readings=20,
        clocks_mhz={"gpu": steady(1300), "cpu": steady(2000)},
        temperatures_c={"gpu-thermal": 55.0, "cpu-thermal": 60.0, "tj-thermal": 61.0},
        throttled=(),
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def steady(mhz: float) -> Range:
    return Range(min=mhz, median=mhz, max=mhz)


def facts(**changes: object) -> MonitorFacts:
    plain = MonitorFacts(
        source="ina3221",
        scope="module rails: VDD_IN",
        reason=None,
        averaging_s=0.002,
        rate_hz=20.0,
        readings_per_s=20.0,
        overhead=0.01,
        reads=("in1_input", "curr1_input"),
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


parts = st.lists(st.tuples(st.floats(0.2, 5), st.floats(0.5, 400)), min_size=10, max_size=20)


@given(parts=parts, images=st.integers(1, 10**6))
def test_energy_is_the_sum_over_the_parts(parts: list[tuple[float, float]], images: int) -> None:
    spans = [span(seconds=seconds, mean_w=mean_w) for seconds, mean_w in parts]
    power, reason = power_of(spans, images=images, facts=facts(), idle=None)
    assert power is not None and reason is None
    joules = sum(seconds * mean_w for seconds, mean_w in parts)
    assert power.energy_mj * images / 1000 == pytest.approx(joules)
    assert power.mean_w * sum(seconds for seconds, _ in parts) == pytest.approx(joules)
    assert power.num_readings == 20 * len(parts)


def test_idle_power_is_told_and_not_taken_off() -> None:
    power, _ = power_of([span()], images=100, facts=facts(), idle=span(mean_w=4.0))
    assert power is not None
    assert (power.mean_w, power.idle_w) == (10.0, 4.0)
    assert power.energy_mj == pytest.approx(100.0)
    assert (power.source, power.scope, power.rate_hz) == ("ina3221", "module rails: VDD_IN", 20.0)


def test_an_unknown_power_is_none_with_the_reason_of_the_source() -> None:
    unknown = facts(source=None, scope=None, reason="this machine shows no power sensor")
    assert power_of([span()], images=9, facts=unknown, idle=None) == (None, unknown.reason)


def test_few_readings_are_no_measurement() -> None:
    spans = [span(power_readings=3), span(power_readings=6)]
    power, reason = power_of(spans, images=9, facts=facts(), idle=None)
    assert power is None
    assert reason is not None and reason.startswith("9 readings of ina3221 in 2.0 s")
    spans.append(span(power_readings=1))
    assert power_of(spans, images=9, facts=facts(), idle=None)[0] is not None


def test_a_part_without_a_reading_is_no_measurement() -> None:
    spans = [span(), span(mean_w=None, power_readings=0), span()]
    power, reason = power_of(spans, images=9, facts=facts(), idle=None)
    assert power is None and reason is not None and reason.startswith("1 of 3 parts")


def test_parts_shorter_than_the_averaging_time_say_so() -> None:
    spans = [span(seconds=0.25, mean_w=None, power_readings=0)] * 4
    power, reason = power_of(spans, images=9, facts=facts(averaging_s=0.5), idle=None)
    assert power is None
    assert reason == "readings are means over 0.5 s, the parts last 0.25 s: without --quick"


def test_nothing_measured_has_no_power() -> None:
    assert power_of([], images=9, facts=facts(), idle=None)[0] is None
    assert power_of([span()], images=0, facts=facts(), idle=None)[0] is None


def test_a_clock_that_falls_is_a_warning_with_both_values() -> None:
    clocks = [1300, 1290, 1020, 1020]
    state, warnings = state_of([span(clocks_mhz={"gpu": steady(c)}) for c in clocks], on_gpu=True)
    (warning,) = warnings
    assert "the GPU fell from 1300 to 1020 MHz" in warning and "--lock-clocks" in warning
    assert state.clock_mhz == Range(min=1020, median=1155, max=1300)


def test_a_clock_that_rises_is_not_told_as_a_fall() -> None:
    spans = [span(clocks_mhz={"cpu": steady(clock)}) for clock in (800, 2000)]
    _, warnings = state_of(spans, on_gpu=False)
    assert "the CPU rose from 800 to 2000 MHz" in warnings[0]


@given(st.lists(st.floats(960, 1000), min_size=1))
def test_clocks_within_5_percent_are_steady(clocks: list[float]) -> None:
    assert state_of([span(clocks_mhz={"gpu": steady(c)}) for c in clocks], on_gpu=True)[1] == ()


def test_the_other_processors_clock_does_not_matter() -> None:
    spans = [span(clocks_mhz={"gpu": steady(1300), "cpu": steady(c)}) for c in (2000, 800)]
    state, warnings = state_of(spans, on_gpu=True)
    assert warnings == () and state.clock_mhz == steady(1300)


def test_throttling_is_a_warning_with_its_reason_once() -> None:
    spans = [
        span(),
        span(throttled=("software power cap",)),
        span(throttled=("software power cap",)),
    ]
    state, warnings = state_of(spans, on_gpu=True)
    assert state.throttled == ("software power cap",)
    assert len(warnings) == 1 and "software power cap" in warnings[0]


def test_the_temperature_is_the_processors_own() -> None:
    assert state_of([span(), span()], on_gpu=True)[0].temperature_c == 55.0
    assert state_of([span()], on_gpu=False)[0].temperature_c == 60.0
    other = [span(temperatures_c={"acpitz": 40.0, "x86_pkg_temp": 71.0, "nvme": 80.0})]
    assert state_of(other, on_gpu=False)[0].temperature_c == 71.0
    unnamed = [span(temperatures_c={"zone0": 40.0, "zone1": 44.0})]
    assert state_of(unnamed, on_gpu=True)[0].temperature_c == 44.0


def test_what_cannot_be_read_is_none() -> None:
    state, warnings = state_of([span(clocks_mhz={}, temperatures_c={})], on_gpu=True)
    assert state == State(clock_mhz=None, temperature_c=None, throttled=()) and warnings == ()


def test_all_of_it_goes_through_json() -> None:
    power, _ = power_of([span()], images=5, facts=facts(), idle=None)
    assert power is not None
    state, _ = state_of([span()], on_gpu=True)
    for value in (span(), facts(), power, state):
        assert load(type(value), dump(value), "here") == value
    assert isinstance(power, Power)


def test_two_readings_per_part_are_no_drop() -> None:
    spans = [
        span(clocks_mhz={"cpu": steady(clock)}, clock_readings={"cpu": 2})
        for clock in (3000, 2800, 3100, 2900)
    ]
    state, warnings = state_of(spans, on_gpu=False)
    assert warnings == ()
    assert state.clock_note is not None
    assert state.clock_note.startswith("8 readings of the CPU's clock in 4 parts, 5 each")


def test_parts_of_enough_readings_are_judged() -> None:
    spans = [
        span(clocks_mhz={"cpu": steady(clock)}, clock_readings={"cpu": 5}) for clock in (3000, 2000)
    ]
    state, warnings = state_of(spans, on_gpu=False)
    assert "the CPU fell from 3000 to 2000 MHz" in warnings[0] and state.clock_note is None
