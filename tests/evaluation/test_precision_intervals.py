from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.evaluation.accuracy import wilson_interval
from oat_edge.evaluation.precisions import (
    drop_of,
    paired_interval,
)

COUNTS = st.tuples(*[st.integers(0, 200)] * 4).filter(any)


@given(counts=COUNTS)
def test_the_interval_holds_the_difference_and_turns_round_with_it(counts):
    both, only_first, only_second, neither = counts
    n = sum(counts)
    low, high = paired_interval(both, only_first, only_second, n)
    difference = (only_first - only_second) / n
    assert -1 <= low <= difference <= high <= 1 and low < high
    other_low, other_high = paired_interval(both, only_second, only_first, n)
    assert other_low == pytest.approx(-high) and other_high == pytest.approx(-low)
    # The complements of both shares differ as much, the other way round.
    wrong = paired_interval(neither, only_second, only_first, n)
    assert wrong == pytest.approx((-high, -low))


def test_the_interval_is_the_one_of_the_paper():
    """Newcombe 1998, table III, method 10: contrasts (a, b, c, d) and their limits."""
    for counts, limits in {
        (36, 12, 2, 0): (0.0569, 0.3404),
        (0, 12, 2, 36): (0.0569, 0.3404),
        (54, 0, 0, 0): (-0.0664, 0.0664),
    }.items():
        assert paired_interval(*counts[:3], sum(counts)) == pytest.approx(limits, abs=6e-4)


def test_95_of_100_intervals_hold_the_truth_and_pairs_make_them_narrow():
    rng = np.random.default_rng(0)
    for first, lost in ((0.5, 0.02), (0.9, 0.05), (0.3, 0.0)):
        n, held, widths = 300, 0, []
        for _ in range(400):
            shared = rng.random(n)
            fp32, other = shared < first, (shared < first - lost) ^ (rng.random(n) < 0.02)
            drop = drop_of(fp32, other)
            share = first - lost
            truth = first - (share * 0.98 + (1 - share) * 0.02)
            low, high = drop.lost_interval
            held += low <= truth <= high
            widths.append(high - low)
        assert held >= 0.93 * 400
        low, high = (float(one) for one in wilson_interval(first * n, n))
        assert np.mean(widths) < 0.8 * (high - low) * np.sqrt(2)
