from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from oat_edge.calib.operating_points import on_operating_front, pareto_front

# Few distinct values, so that ties and duplicates are common; NaN and infinity are unknown.
values = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, np.nan, np.inf, -np.inf])


def tables(num_objectives):
    shape = st.integers(0, 25).map(lambda n: (n, num_objectives))
    return shape.flatmap(lambda s: arrays(np.float64, s, elements=values))


def brute_force(points, maximize):
    """The definition, word for word."""
    sign = [-1 if more else 1 for more in maximize]
    cost = [[s * v for s, v in zip(sign, row, strict=True)] for row in points]
    known = [all(np.isfinite(row)) for row in cost]

    def dominates(a, b):
        pairs = list(zip(a, b, strict=True))
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    return [
        known[i] and not any(known[j] and dominates(cost[j], row) for j in range(len(cost)))
        for i, row in enumerate(cost)
    ]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), num_objectives=st.integers(1, 4))
def test_front_is_that_of_the_definition(data, num_objectives):
    points = data.draw(tables(num_objectives))
    flags = st.lists(st.booleans(), min_size=num_objectives, max_size=num_objectives)
    maximize = data.draw(flags)
    before = points.copy()
    assert pareto_front(points, maximize=maximize).tolist() == brute_force(points, maximize)
    assert np.array_equal(points, before, equal_nan=True)  # the input is left alone


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, (300, 2), elements=st.floats(-1e6, 1e6)))
def test_two_objectives_agree_with_three_of_which_one_is_constant(points):
    padded = np.column_stack([points, np.zeros(len(points))])
    fast = pareto_front(points, maximize=(False, True))
    assert np.array_equal(fast, pareto_front(padded, maximize=(False, True, False)))
    assert fast.any()


def test_duplicates_are_kept_and_ties_in_one_objective_are_not():
    points = [(1, 5), (1, 5), (1, 4), (2, 5), (2, 6)]
    front = pareto_front(points, maximize=(False, True))
    assert front.tolist() == [True, True, False, False, True]


def test_large_inputs_are_sorted_not_compared_in_pairs():
    """A quadratic method would need 10^10 comparisons here."""
    n = 100_000
    x = np.arange(n, dtype=np.float64)
    assert pareto_front(np.column_stack([x, x]), maximize=(False, True)).all()
    assert pareto_front(np.column_stack([x, -x]), maximize=(False, True)).sum() == 1


def test_operating_front_on_a_small_example():
    latency_ms = [1.0, 1.0, 2.0, 2.0, 3.0, None]
    worst = [0.30, 0.40, 0.45, 0.40, 0.40, 0.99]
    standard = [0.90, 0.80, 0.85, 0.80, 0.95, 0.99]
    #           best SA@1 | best RA@1 | best RA | beaten by 2nd | best SA | unknown latency
    expected = [True, True, True, False, True, False]
    assert on_operating_front(latency_ms, worst, standard).tolist() == expected


@pytest.mark.parametrize("unknown", range(3))
def test_points_that_lack_a_figure_are_not_on_the_front(unknown):
    columns = [[1.0, 2.0], [0.5, 0.4], [0.9, 0.8]]
    columns[unknown][0] = None
    assert on_operating_front(*columns).tolist() == [False, True]


def test_no_points_no_front():
    assert on_operating_front([], [], []).shape == (0,)


@pytest.mark.parametrize("points", [np.zeros((3, 3)), np.zeros(4)])
def test_wrong_shapes_are_refused(points):
    with pytest.raises(ValueError, match="expected"):
        pareto_front(points, maximize=(True, False))


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="longer"):
        on_operating_front([1.0], [0.5, 0.6], [0.9, 0.9])
