"""Stop rules and bookkeeping, on an injected clock: nothing here sleeps or is timed."""

from __future__ import annotations

import dataclasses
import gc
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.bench.latency import (
    NS,
    WINDOW_CALLS,
    Measurable,
    gc_paused,
    warm_up,
)
from oat_edge.runtime.runner import DeviceTimes
from tests.bench.turns import FakeTime, config, measure

pytestmark = pytest.mark.usefixtures("frozen_heap")


@settings(max_examples=10, deadline=None)
@given(
    cost_ms=st.floats(0.5, 50.0),
    min_seconds=st.floats(0.0, 2.0),
    min_iterations=st.integers(1, 300),
    rounds=st.integers(3, 5),
)
def test_both_minimums_hold_and_neither_is_far_overshot(
    cost_ms, min_seconds, min_iterations, rounds
):
    time = FakeTime()
    cost_ns = round(cost_ms * 1e6)
    (samples,) = measure(
        [time.measurable("a", cost_ns)],
        config(min_seconds=min_seconds, min_iterations=min_iterations, rounds=rounds),
        clock=time,
    )
    n = len(samples.latency_ns)
    assert n >= min_iterations
    assert samples.latency_ns.sum() >= (min_seconds - 1e-6) * NS
    # Each round may overshoot each minimum by less than one request.
    enough = max(math.ceil(min_seconds * NS / cost_ns), min_iterations)
    assert n <= enough + 2 * rounds
    assert (samples.latency_ns == cost_ns).all()


def test_lambda_goes_round_without_a_gap_over_the_rounds():
    time = FakeTime()
    samples = measure(
        [
            time.measurable("a", lambda _, lam: (lam + 1) * 1_000_000, num_lambdas=3),
            time.measurable("b", 1_000_000, num_lambdas=1),
        ],
        config(min_seconds=0.0),  # 25 requests a round, which is no multiple of 3
        clock=time,
    )
    a, b = samples
    n = len(a.latency_ns)
    assert n == 100
    assert np.array_equal(a.lambda_index, np.arange(n) % 3)
    # The recorded λ is the one that the request really had.
    assert np.array_equal(a.latency_ns, (a.lambda_index + 1) * 1_000_000)
    assert not b.lambda_index.any()


def test_no_sample_is_clipped():
    time = FakeTime()
    outlier_ns = 3 * NS
    (samples,) = measure(
        [time.measurable("a", lambda i, _: outlier_ns if i % 97 == 96 else 1_000_000)],
        config(min_iterations=2000),
        clock=time,
    )
    recorded = len(samples.latency_ns)
    all_calls = np.array(
        [outlier_ns if i % 97 == 96 else 1_000_000 for i in range(len(time.calls))]
    )
    assert (samples.latency_ns == outlier_ns).sum() >= recorded // 97 - 4
    assert samples.latency_ns.max() == all_calls.max()


def test_rewarm_lasts_at_least_its_time():
    def num_unrecorded(rewarm_s):
        time = FakeTime()
        samples = measure([time.measurable("a", 1_000_000)], config(rewarm_s=rewarm_s), clock=time)
        return len(time.calls) - len(samples[0].latency_ns)

    # Four rounds of 0.1 s at 1 ms a request, instead of two requests each.
    assert num_unrecorded(0.1) - num_unrecorded(0.0) == 4 * (100 - 2)


@given(cost_ms=st.floats(0.01, 200.0))
@settings(max_examples=40, deadline=None)
def test_warm_up_of_a_steady_network_ends_soon_after_its_minimums(cost_ms):
    time = FakeTime()
    warm = warm_up(time.measurable("a", round(cost_ms * 1e6)), config(), clock=time)
    assert warm.agreed
    assert warm.seconds >= 0.5 and len(time.calls) >= 3 * WINDOW_CALLS
    longest_s = max(0.5 + 3 * cost_ms / 1e3, 3 * WINDOW_CALLS * cost_ms / 1e3)
    assert warm.seconds <= longest_s + 1e-3
    assert warm.median_s == pytest.approx(cost_ms / 1e3, rel=1e-3, abs=1e-8)


def test_warm_up_waits_until_the_clocks_have_settled():
    time = FakeTime()
    # 10 % faster each 0.1 s until 4 ms: it settles after about 1 s.
    steps = lambda _, __: round(max(10e6 * 0.9 ** (time.now_ns / 1e8), 4e6))  # noqa: E731
    warm = warm_up(time.measurable("a", steps), config(), clock=time)
    settled_s = 0.1 * math.log(0.4) / math.log(0.9)
    assert warm.agreed and settled_s < warm.seconds < settled_s + 1.0
    assert warm.median_s == pytest.approx(4e-3)


def test_warm_up_that_never_agrees_stops_at_the_cap_and_says_so():
    time = FakeTime()
    growing = time.measurable("a", lambda i, _: round(1e6 * 1.01**i))
    (samples,) = measure([growing], config(warmup_cap_s=2.0), clock=time)
    assert not samples.warmup_agreed
    assert 2.0 <= samples.warmup_s < 2.1


def test_slow_networks_can_agree_in_a_window_that_the_cap_cuts():
    time = FakeTime()
    warm = warm_up(time.measurable("a", 600_000_000), config(), clock=time)
    assert warm.agreed and 10.0 <= warm.seconds < 10.6


def test_one_request_longer_than_the_cap_is_not_taken_for_agreement():
    time = FakeTime()
    warm = warm_up(time.measurable("a", 20 * NS), config(), clock=time)
    assert not warm.agreed and len(time.calls) == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_off_inside_and_as_before_afterwards(enabled):
    time = FakeTime()
    seen = []

    def call(_):
        seen.append(gc.isenabled())
        time.now_ns += 10_000_000

    try:
        gc.enable() if enabled else gc.disable()
        measure([Measurable(name="a", call=call)], config(), clock=time)
        assert gc.isenabled() is enabled
        with pytest.raises(RuntimeError), gc_paused():
            raise RuntimeError
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
    assert seen and not any(seen)


def test_an_error_of_a_request_is_not_swallowed():
    def call(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure([Measurable(name="a", call=call)], config(), clock=FakeTime())


def test_warm_up_needs_the_number_of_windows_it_was_told():
    def num_calls(windows):
        time = FakeTime()
        changed = dataclasses.replace(config(), windows=windows, warmup_min_s=0.0)
        warm_up(time.measurable("a", 1_000_000), changed, clock=time)
        return len(time.calls)

    assert [num_calls(windows) for windows in (2, 3, 5)] == [14, 21, 35]


def test_times_on_the_device_are_those_of_the_recorded_requests_and_cost_no_latency():
    time, asked = FakeTime(), []

    def device_times():
        time.now_ns += 7 * NS  # however long it takes to ask
        asked.append(len(time.calls))
        return DeviceTimes(1.0, float(len(time.calls)), 3.0)

    one = time.measurable("a", 10_000_000, device_times=device_times)
    (samples,) = measure([one], config(min_seconds=0.0, rewarm_s=0.0), clock=time)
    assert set(samples.latency_ns.tolist()) == {10_000_000}
    assert samples.device_ms.shape == (len(samples.latency_ns), 3)
    # Each was asked for right after its own request, and warm-ups were not asked about.
    assert samples.device_ms[:, 1].tolist() == asked
    assert asked[0] > WINDOW_CALLS and len(asked) < len(time.calls)
    assert samples.device_ms[:, [0, 2]].tolist() == [[1.0, 3.0]] * len(asked)


@pytest.mark.parametrize("known", [0, 5])
def test_a_device_without_a_clock_has_no_times(known):
    """None for some requests only is no figure either: it would be a choice among them."""
    time, num_asked = FakeTime(), 0

    def device_times():
        nonlocal num_asked
        num_asked += 1
        return DeviceTimes(1.0, 2.0, 3.0) if num_asked <= known else None

    one = time.measurable("a", 10_000_000, device_times=device_times)
    (samples,) = measure([one], config(min_seconds=0.0), clock=time)
    assert samples.device_ms is None and num_asked == len(samples.latency_ns)
