"""Intervals over images and seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.evaluation.accuracy import interval
from oat_edge.evaluation.precisions import drop_of
from oat_edge.reproduce.spread import difference, share, weighted


@st.composite
def seeds_of_images(draw, min_seeds=1):
    """Two stacks (S, N) of which images are right."""
    num_seeds, num = draw(st.integers(min_seeds, 4)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rates = draw(st.tuples(st.floats(0, 1), st.floats(0, 1)))
    first, second = (list(rng.random((num_seeds, num)) < rate) for rate in rates)
    return first, second


@given(seeds_of_images())
def test_means_lie_inside_their_intervals_inside_what_can_be(both):
    for one, lowest in ((share(both[0]), 0.0), (difference(*both), -1.0)):
        low, high = one.interval
        assert lowest <= low <= one.mean + 1e-12 and one.mean - 1e-12 <= high <= 1.0
        assert len(one.by_seed) == len(both[0])
        assert one.mean == pytest.approx(np.mean(one.by_seed))
        assert (one.std is None) == (len(both[0]) == 1)


@given(seeds_of_images())
def test_the_difference_is_that_of_the_shares_and_turns_with_its_sides(both):
    first, second = both
    forth, back = difference(first, second), difference(second, first)
    assert forth.mean == pytest.approx(share(first).mean - share(second).mean)
    assert forth.mean == pytest.approx(-back.mean)
    assert forth.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-9)


@given(seeds_of_images())
def test_one_seed_has_the_interval_of_its_images(both):
    (first, *_), (second, *_) = both
    assert share([first]).interval == pytest.approx(interval(first.mean(), len(first)))
    drop = drop_of(first, second)
    assert difference([first], [second]).interval == pytest.approx(drop.lost_interval)


@given(seeds_of_images(), st.integers(2, 5))
def test_networks_that_do_not_differ_say_as_much_as_one(both, copies):
    (first, *_), (second, *_) = both
    one, many = difference([first], [second]), difference([first] * copies, [second] * copies)
    assert many.interval == pytest.approx(one.interval) and many.std == pytest.approx(0)


@given(seeds_of_images(min_seeds=2))
def test_networks_that_differ_never_make_the_interval_narrower_than_chance_among_images(both):
    first, second = both
    seeds = [difference([a], [b]) for a, b in zip(first, second, strict=True)]
    many = difference(first, second)
    low = np.mean([one.mean - one.interval[0] for one in seeds])
    assert many.mean - many.interval[0] >= low - 1e-9 or many.interval[0] == -1


def test_three_seeds_have_students_t():
    """Of shares 0.4, 0.5, 0.6 of so many images that chance among them is next to nothing."""
    num = 200_000
    right = [np.arange(num) < rate * num for rate in (0.4, 0.5, 0.6)]
    low, high = share(right).interval
    # t of 2 degrees of freedom at 0.975, any table.
    reach = 4.3027 * 0.1 / math.sqrt(3)
    assert (low, high) == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-3)


def test_the_interval_covers_the_truth():
    """Networks whose true shares differ, images drawn from them: 95 % or more of the time."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        rates = np.clip(rng.normal(0.6, 0.05, size=3), 0, 1)
        right = list(rng.random((3, 60)) < rates[:, None])
        low, high = share(right).interval
        covered += low <= 0.6 <= high
    assert covered >= 0.95 * 400


@given(seeds_of_images(), seeds_of_images(), st.floats(0, 1))
def test_what_lambda_asks_for_is_sa_at_zero_and_ra_at_one(both, others, lam):
    num = min(len(both[0]), len(others[0]))
    standard = difference(both[0][:num], both[1][:num])
    robust = difference(others[0][:num], others[1][:num])
    for end, one in ((0.0, standard), (1.0, robust)):
        found = weighted(standard, robust, end)
        assert found.interval == pytest.approx(one.interval)
        assert found.by_seed == pytest.approx(one.by_seed)
    between = weighted(standard, robust, lam)
    assert between.mean == pytest.approx((1 - lam) * standard.mean + lam * robust.mean)
    assert between.mean == pytest.approx(np.mean(between.by_seed))
    assert (between.std is None) == (num == 1)
    low, high = between.interval
    assert low <= between.mean + 1e-12 and between.mean - 1e-12 <= high
    # No narrower than if the two parts erred independently.
    parts = [
        (1 - lam) * (standard.mean - standard.interval[0]),
        lam * (robust.mean - robust.interval[0]),
    ]
    assert between.mean - low >= math.hypot(*parts) - 1e-9
