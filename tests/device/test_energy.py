"""Synthetic traces whose energy is known, read as the monitor reads by default."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.device.energy import Float64, Unwrapped, mean_of_joules, mean_of_watts
from oat_edge.device.monitor import COUNTER_READINGS

PERIOD_S = 0.05
COUNTER_PERIOD_S = PERIOD_S / COUNTER_READINGS
Trace = Callable[[Float64], Float64]
"""Power in W over time in s."""


def exact_mean(trace: Trace, start_s: float, end_s: float) -> float:
    times = np.linspace(start_s, end_s, 200_001)
    middles = (times[1:] + times[:-1]) / 2
    return float(trace(middles).mean())


def joules_of(trace: Trace, times_s: Float64) -> Float64:
    """Energy from time 0 on, at each of these times."""
    fine = np.arange(0, times_s[-1] + 0.001, 0.0005)
    total = np.concatenate([[0], np.cumsum(trace(fine[:-1] + 0.00025)) * 0.0005])
    return np.interp(times_s, fine, total)


def jittered(seconds: float, seed: int, period_s: float = PERIOD_S) -> Float64:
    """Times of readings that come late by up to 80 % of the period."""
    regular = np.arange(0, seconds, period_s)
    return regular + np.random.default_rng(seed).uniform(0, 0.8 * period_s, len(regular))


def constant(times_s: Float64) -> Float64:
    return np.full_like(times_s, 12.5)


def ramp(times_s: Float64) -> Float64:
    return 5 + 1.5 * times_s


def square(times_s: Float64) -> Float64:
    """8 W and 24 W by turns, each for 0.7 s."""
    return np.where((times_s // 0.7) % 2 == 0, 8.0, 24.0)


traces = pytest.mark.parametrize("trace", [constant, ramp, square])
# The traces are computed finely: fewer examples keep the tests quick.
few = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)
starts = st.floats(0.5, 3)


@traces
@few
@given(seed=seeds, start_s=starts)
def test_watts_are_right_to_1_percent(trace: Trace, seed: int, start_s: float) -> None:
    times_s = jittered(25, seed)
    mean_w, num = mean_of_watts(times_s, trace(times_s), start_s, start_s + 20)
    # A step of the square wave is seen up to half a gap too early or late, by chance.
    assert mean_w == pytest.approx(exact_mean(trace, start_s, start_s + 20), rel=0.01)
    assert abs(num - 20 / PERIOD_S) <= 2


@traces
@few
@given(seed=seeds, start_s=starts)
def test_a_fast_counter_is_right_to_1_percent(trace: Trace, seed: int, start_s: float) -> None:
    times_s = jittered(8, seed)
    mean_w, num = mean_of_joules(times_s, joules_of(trace, times_s), start_s, start_s + 4)
    assert mean_w == pytest.approx(exact_mean(trace, start_s, start_s + 4), rel=0.01)
    assert abs(num - 4 / PERIOD_S) <= 2


@traces
@few
@given(seed=seeds, start_s=starts)
def test_a_slow_counter_is_right_to_1_percent(trace: Trace, seed: int, start_s: float) -> None:
    """Renewed every 0.1 s, as NVML's may be: ten parts of a cell, a second each, as a bench."""
    times_s = jittered(28, seed, COUNTER_PERIOD_S)
    renewed = joules_of(trace, np.floor(times_s / 0.1) * 0.1)
    parts = [(start_s + 2 * part, start_s + 2 * part + 1) for part in range(10)]
    means = [mean_of_joules(times_s, renewed, *part) for part in parts]
    exact = [exact_mean(trace, *part) for part in parts]
    assert all(9 <= num <= 11 for _, num in means)
    if trace is square:
        # Where a step lies between two values of the counter, it does not tell.
        for (mean_w, _), true_w in zip(means, exact, strict=True):
            assert mean_w is not None and abs(mean_w - true_w) < 0.15 * (24 - 8)
    else:
        total = sum(mean_w or 0.0 for mean_w, _ in means)
        assert total == pytest.approx(sum(exact), rel=0.01)


@traces
@few
@given(seed=seeds)
def test_a_counter_that_wraps_is_right_to_1_percent(trace: Trace, seed: int) -> None:
    times_s, top = jittered(8, seed), 37.0
    unwrap = Unwrapped(top)
    joules = np.array([unwrap(value) for value in joules_of(trace, times_s) % top])
    assert joules[-1] > 2 * top
    mean_w, _ = mean_of_joules(times_s, joules, 1.5, 5.5)
    assert mean_w == pytest.approx(exact_mean(trace, 1.5, 5.5), rel=0.01)


@given(averaging_s=st.floats(0.05, 0.4), seed=seeds)
def test_power_of_the_cell_before_does_not_count(averaging_s: float, seed: int) -> None:
    """Readings are means over the time before them: the first ones of a cell mix two cells."""
    times_s = jittered(6, seed)
    before_w, own_w = 30.0, 10.0
    share = np.clip((times_s - 3.0) / averaging_s, 0, 1)
    watts = before_w + share * (own_w - before_w)
    mean_w, num = mean_of_watts(times_s, watts, 3.0, 4.0, averaging_s=averaging_s)
    assert mean_w == pytest.approx(own_w)
    assert num <= (1 - averaging_s) / averaging_s + 1


def test_readings_of_one_averaging_time_are_one() -> None:
    times_s = np.arange(0, 2, 0.05)
    _, num = mean_of_watts(times_s, constant(times_s), 0.0, 2.0, averaging_s=0.5)
    assert num == 3  # at 0.5, 1.0 and 1.5


def test_a_span_without_readings_has_no_mean() -> None:
    times_s = np.arange(0, 2, 0.05)
    assert mean_of_watts(times_s, constant(times_s), 2.5, 3.0) == (None, 0)
    assert mean_of_watts(times_s, constant(times_s), 0.5, 1.0, averaging_s=0.6) == (None, 0)
    assert mean_of_watts(times_s[:0], times_s[:0], 0.0, 1.0) == (None, 0)
    assert mean_of_joules(times_s[:0], times_s[:0], 0.0, 1.0) == (None, 0)


def test_a_counter_that_stands_still_tells_nothing() -> None:
    times_s = np.arange(0, 2, 0.05)
    assert mean_of_joules(times_s, np.full_like(times_s, 7.0), 0.5, 1.5) == (None, 0)
    one_step = np.where(times_s < 1, 7.0, 8.0)
    assert mean_of_joules(times_s, one_step, 0.5, 1.5) == (None, 0)


def test_a_counter_known_in_a_small_part_tells_nothing() -> None:
    times_s = np.arange(0, 1.3, 0.05)
    assert mean_of_joules(times_s, 10 * times_s, 1.0, 2.0) == (None, 0)


def test_a_counter_that_fell_is_an_error_without_its_range() -> None:
    unwrap = Unwrapped(None)
    assert unwrap(5.0) == 5.0
    with pytest.raises(OSError, match="backwards"):
        unwrap(4.0)
