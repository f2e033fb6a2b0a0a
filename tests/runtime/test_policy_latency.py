from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.runtime.policy_latency import WidthLatency, Window

latencies = st.floats(0.01, 100.0)


@given(st.lists(latencies, min_size=1, max_size=60), st.integers(2, 20), st.data())
def test_the_level_is_the_largest_of_the_last_but_a_few(
    values: list[float], size: int, data: st.DataObject
) -> None:
    spare = data.draw(st.integers(0, size - 1))
    window = Window(size, spare)
    for i, value in enumerate(values, start=1):
        window.add(value)
        last = sorted([1.0, *values[:i]][-size:], reverse=True)
        assert window.level == last[min(spare, len(last) - 1)]


@given(st.lists(latencies, min_size=1, max_size=30), st.floats(0.1, 2.0))
def test_after_a_new_start_one_slow_request_counts_until_the_window_is_full(
    before: list[float], calm: float
) -> None:
    size = 8
    for calm_requests in range(1, 12):
        window = Window(size, 1)
        for value in before:
            window.add(value)
        window.start_again(calm)
        for _ in range(calm_requests - 1):
            window.add(calm)
        assert window.level == calm
        window.add(1000.0)
        # The slow one is the last of a full window: from then on a lone one is an accident.
        assert window.level == (calm if calm_requests >= size - 1 else 1000.0)


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

    latency = WidthLatency({n: truth_ms(n) for n in measured}, window=20, spare=1)
    bound_ms = latency.unit_ms(batch)
    assert bound_ms >= truth_ms(batch) * (1 - 1e-12)
    assert batch not in measured or bound_ms == truth_ms(batch)
    # Tight at both ends.
    assert bound_ms <= max(truth_ms(max(measured)), truth_ms(min(measured))) * max(1, batch)


def test_and_what_is_seen_takes_its_place() -> None:
    latency = WidthLatency({1: 1.0}, window=20, spare=1)
    assert latency.unit_ms(8) == 8.0
    for _ in range(19):
        latency.see(8, 3.0)
    assert latency.unit_ms(8) == 8.0
    latency.see(8, 30.0)  # an accident
    assert latency.unit_ms(8) == 3.0
    for _ in range(20):  # under load: the calmest window is what counts as 1
        latency.see(8, 9.0)
    assert latency.unit_ms(8) == 3.0 and latency.window.level == pytest.approx(3.0)
    assert latency.unit_ms(1) == 1.0
