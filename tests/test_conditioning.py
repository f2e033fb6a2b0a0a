from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oat_edge.conditioning import PAPER_KNOTS, check_knots, hat_weights
from oat_edge.errors import InputError

inner = st.lists(st.integers(1, 999).map(lambda n: n / 1000), unique=True, max_size=8)
several_knots = inner.map(lambda values: (0.0, *sorted(values), 1.0))
unit = st.floats(0.0, 1.0, width=32)


def reference(lam: float, knots: tuple[float, ...], through_zero: bool) -> np.ndarray:
    """The same weights by another road: interpolate each unit vector, in float64."""
    if through_zero:
        every = np.asarray(knots, dtype=np.float32).astype(np.float64)
        return np.array([np.interp(lam, every, row) for row in np.eye(len(every))])
    if lam == 0:
        return np.eye(len(knots))[0]
    above = np.asarray(knots[1:], dtype=np.float32).astype(np.float64)
    rows = [np.interp(lam, above, row) for row in np.eye(len(above))]
    return np.concatenate([[0.0], rows])


@given(several_knots, st.lists(unit, min_size=1, max_size=20), st.booleans())
@example(PAPER_KNOTS, [0.0, 1e-30, 0.05, 0.1, 0.15, 0.7, 1.0], False)
@example(PAPER_KNOTS, [0.0, 1e-30, 0.05, 0.1, 0.15, 0.7, 1.0], True)
def test_weights_are_a_piecewise_linear_hat(knots, lam, through_zero):
    weights = hat_weights(lam, knots, through_zero=through_zero)
    assert weights.shape == (len(lam), len(knots)) and weights.dtype == np.float32
    expected = np.stack([reference(float(np.float32(value)), knots, through_zero) for value in lam])
    np.testing.assert_allclose(weights, expected, atol=1e-4)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-4)


@given(several_knots, st.booleans())
@example(PAPER_KNOTS, False)
@example(PAPER_KNOTS, True)
def test_a_knot_gets_a_one_hot_row_bit_for_bit(knots, through_zero):
    weights = hat_weights(knots, knots, through_zero=through_zero)
    np.testing.assert_array_equal(weights, np.eye(len(knots), dtype=np.float32))


@given(several_knots, unit.filter(lambda lam: lam > 0))
def test_clean_and_adversarial_branch_are_never_blended(knots, lam):
    ((clean, *adversarial),) = hat_weights([lam], knots)
    assert clean == 0 and sum(weight > 0 for weight in adversarial) <= 2


@given(several_knots, st.floats(1e-30, 1.0))
def test_below_the_first_knot_above_zero_lambda_is_clamped_to_it(knots, share):
    lam = np.float32(share) * np.float32(knots[1])
    np.testing.assert_array_equal(hat_weights([lam], knots), hat_weights([knots[1]], knots))


@given(several_knots, st.floats(allow_nan=False, width=32))
def test_outside_the_range_lambda_is_clipped(knots, lam):
    inside = min(max(lam, 0.0), 1.0)
    np.testing.assert_array_equal(hat_weights([lam], knots), hat_weights([inside], knots))


@given(unit, st.lists(unit, min_size=1, max_size=9))
def test_a_single_knot_always_weighs_one(knot, lam):
    np.testing.assert_array_equal(hat_weights(lam, (knot,)), np.ones((len(lam), 1)))


@given(st.one_of(several_knots, unit.map(lambda knot: (knot,))))
def test_valid_knots_come_back_as_they_are(knots):
    assert check_knots(knots) == knots
    assert check_knots(tuple(np.float32(knot) for knot in knots)) == tuple(
        float(np.float32(knot)) for knot in knots
    )


@pytest.mark.parametrize(
    "knots",
    [
        (),
        (0.1, 1.0),
        (0.0, 0.9),
        (0.0, 1.1),
        (-0.1, 1.0),
        (1.5,),
        (float("nan"),),
        (0.0, float("nan"), 1.0),
        (0.0, 0.5, 0.5, 1.0),
        (0.0, 0.6, 0.5, 1.0),
        (0.0, 0.5, 0.5 + 1e-9, 1.0),  # one value in float32
        (0.0, 1e-50, 1.0),  # zero in float32
    ],
)
def test_bad_knots_are_refused_with_their_value(knots):
    with pytest.raises(InputError, match="lambdas are"):
        check_knots(knots)
