from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.evaluation.accuracy import interval, to_float, wilson_interval


def test_levels_over_255_in_float32():
    levels = np.arange(256, dtype=np.uint8)
    values = to_float(levels)
    assert values.dtype == np.float32 and values[0] == 0 and values[255] == 1
    assert np.array_equal(np.round(values * 255), levels)


counts = st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_wilson_interval_holds_the_share_and_mirrors(count):
    right, n = count
    low, high = wilson_interval(right, n)
    assert 0 <= low <= right / n <= high <= 1
    mirrored_low, mirrored_high = wilson_interval(n - right, n)
    assert (low, high) == pytest.approx((1 - mirrored_high, 1 - mirrored_low), abs=1e-12)


@given(counts)
def test_wilson_bounds_solve_the_score_equation(count):
    """|share - p| = z * sqrt(p(1-p)/n) at both bounds (Wilson 1927)."""
    right, n = count
    for bound in wilson_interval(right, n):
        reach = 1.959963984540054 * np.sqrt(bound * (1 - bound) / n)
        assert abs(right / n - bound) == pytest.approx(reach, abs=1e-9)


def test_wilson_interval_of_known_figures():
    # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29.
    low, high = wilson_interval([81, 15, 0, 1], [263, 148, 20, 29])
    assert low == pytest.approx([0.2553, 0.0624, 0.0, 0.0061], abs=5e-5)
    assert high == pytest.approx([0.3662, 0.1605, 0.1611, 0.1718], abs=5e-5)


@pytest.mark.parametrize(("right", "n"), [(1, 0), (3, 2), (-1, 5)])
def test_wilson_interval_of_impossible_counts(right, n):
    with pytest.raises(ValueError, match="num_right"):
        wilson_interval(right, n)


@given(counts)
def test_interval_of_a_share_is_that_of_its_count(count):
    right, n = count
    low, high = wilson_interval(right, n)
    assert interval(right / n, n) == (low, high)
    assert all(type(bound) is float for bound in interval(right / n, n))
