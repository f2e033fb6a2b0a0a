from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.runtime.policy_latency import WEIGHT, WidthLatency, Window, reported

latencies = st.floats(0.01, 100.0)


@given(st.lists(latencies, max_size=60), st.integers(4, 20), latencies, st.floats(0.0, 1.0))
def test_in_time_is_the_lower_of_all_and_the_last_few(
    values: list[float], size: int, limit: float, belief: float
) -> None:
    recent, spare = 4, 1
    window = Window(size, recent, spare)
    for value in values:
        window.add(value)
    kept = values[-size:]
    by_all = (sum(one <= limit for one in kept) + WEIGHT * belief) / (len(kept) + WEIGHT)
    late = sum(one > limit for one in values[-recent:])
    by_few = 1.0 - max(0, late - spare) / recent
    assert window.in_time(limit, belief) == pytest.approx(min(by_all, by_few))
    # Little evidence is no certainty.
    if 0.0 < belief < 1.0 and late <= spare:
        assert 0.0 < window.in_time(limit, belief) < 1.0


@given(st.lists(latencies, max_size=30), latencies, latencies)
def test_more_time_is_never_less_likely_to_do(values: list[float], a: float, b: float) -> None:
    window = Window(16, 4, 1)
    for value in values:
        window.add(value)
    low, high = sorted((a, b))
    assert window.in_time(low, reported(low)) <= window.in_time(high, reported(high))


def test_what_is_forgotten_does_not_count() -> None:
    window = Window(8, 4, 1)
    for _ in range(8):
        window.add(5.0)
    assert (window.level(1.0), window.in_time(1.0, 0.9)) == (5.0, 0.25)
    window.clear()
    assert (window.level(1.0), window.in_time(1.0, 0.9)) == (1.0, 0.9)


@given(
    st.floats(0.0, 5.0),
    st.floats(0.01, 2.0),
    st.sets(st.integers(1, 64), min_size=1, max_size=4),
    st.integers(1, 256),
)
def test_a_batch_that_was_not_measured_gets_an_upper_bound(
    fixed_ms: float, per_image_ms: float, measured: set[int], batch: int
) -> None:
    def truth_ms(images: int) -> float:
        return fixed_ms + per_image_ms * images

    latency = WidthLatency({n: truth_ms(n) for n in measured}, Window(20, 4, 1))
    bound_ms = latency.unit_ms(batch)
    assert bound_ms >= truth_ms(batch) * (1 - 1e-12)
    assert batch not in measured or bound_ms == truth_ms(batch)
    # Tight at both ends.
    assert bound_ms <= max(truth_ms(max(measured)), truth_ms(min(measured))) * max(1, batch)


def test_and_what_is_seen_takes_its_place() -> None:
    latency = WidthLatency({1: 1.0}, Window(20, 4, 1))
    assert latency.unit_ms(8) == 8.0
    for _ in range(19):
        latency.see(8, 3.0)
    assert latency.unit_ms(8) == 8.0
    latency.see(8, 30.0)  # an accident
    assert latency.unit_ms(8) == 3.0
    for _ in range(20):  # under load: the calmest window is what counts as 1
        latency.see(8, 9.0)
    assert latency.unit_ms(8) == 3.0 and latency.window.level(1.0) == pytest.approx(3.0)
    assert latency.unit_ms(1) == 1.0
