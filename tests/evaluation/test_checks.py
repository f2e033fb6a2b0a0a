from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from oat_edge.evaluation.checks import (
    P_VALUE,
    PASSES,
    RANDOM_TOLERANCE,
    check_randomised,
    check_weaker,
    sign_test,
)

COUNTS = st.integers(0, 300)
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(num_for=COUNTS, num_against=COUNTS)
def test_the_sign_test_is_the_exact_binomial_one(num_for, num_against):
    ours = sign_test(num_for, num_against)
    if num_for + num_against == 0:
        assert ours == 1
    else:
        n = num_for + num_against
        assert ours == pytest.approx(binomtest(num_for, n, alternative="greater").pvalue, rel=1e-9)


def test_the_sign_test_holds_for_a_whole_test_split():
    assert 0.49 < sign_test(5000, 5000) < 0.51
    assert sign_test(10_000, 0) == 0 and sign_test(0, 10_000) == 1


def both(pairs):
    return np.array(pairs, dtype=bool).T


@given(pairs=PAIRS)
def test_of_two_attacks_at_most_one_order_is_suspect(pairs):
    first, second = both(pairs)
    one = check_weaker("order", "A", "B", first, second)
    other = check_weaker("order", "B", "A", second, first)
    assert not (one.flagged and other.flagged)
    only_first = int((second & ~first).sum())
    only_second = int((first & ~second).sum())
    assert one.flagged == (sign_test(only_first, only_second) < P_VALUE)
    assert other.flagged == (sign_test(only_second, only_first) < P_VALUE)
    assert f"first alone {only_first}, by the second alone {only_second}" in one.evidence
    assert f"of {len(pairs)}" in one.evidence


@given(pairs=PAIRS, order=st.randoms())
def test_neither_the_order_of_images_nor_those_that_agree_matter(pairs, order):
    mixed = [*pairs, *[(True, True), (False, False)] * 50]
    order.shuffle(mixed)
    flagged = [check_weaker("x", "A", "B", *both(p)).flagged for p in (pairs, mixed)]
    assert flagged[0] == flagged[1]


@given(strong=st.lists(st.booleans(), min_size=1, max_size=60), data=st.data())
def test_an_attack_that_fools_a_part_of_the_others_images_is_never_suspect(strong, data):
    strong_right = np.array(strong)
    weak_right = strong_right | np.array([data.draw(st.booleans()) for _ in strong])
    assert not check_weaker("x", "A", "B", weak_right, strong_right).flagged


def test_ten_images_to_none_are_no_chance_and_nine_are():
    for num, flagged in ((9, False), (10, True)):
        weak_right = np.arange(100) >= num
        check = check_weaker("x", "FGSM", "PGD", weak_right, np.ones(100, dtype=bool))
        assert check.flagged == flagged
        assert f"{100 - num}.0 % right under FGSM, 100.0 % under PGD" in check.evidence


IMAGES, LABELS = np.zeros((4, 1, 2, 2), dtype=np.uint8), np.array([0, 1, 0, 1])
LOGITS = np.array([[2, 1], [1, 2], [5, 3], [3, 1]], dtype=np.float32)


def randomised(*passes):
    assert len(passes) == PASSES
    answers = iter(passes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return check_randomised(lambda image: next(answers), IMAGES, LABELS)


def test_equal_answers_are_not_randomised_and_rounding_is_forgiven():
    check = randomised(LOGITS, LOGITS * (1 + 1e-6), LOGITS)
    assert check.flagged is False and "right are 3, 3, 3" in check.evidence


@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, None])
def test_one_answer_that_differs_in_any_pass_is_randomised(place, bad):
    """NaN too, and in an image that is wrong anyway: neither shares nor max may hide it."""
    answers = [LOGITS.copy() for _ in range(PASSES)]
    answers[place][3, 0] = 3 + 20 * RANDOM_TOLERANCE if bad is None else bad
    assert randomised(*answers).flagged is True


def test_logits_of_any_scale_are_compared_by_their_direction():
    assert not randomised(*[1e-20 * LOGITS] * 3).flagged
    assert not randomised(*[1e20 * LOGITS] * 3).flagged
    assert not randomised(*[0 * LOGITS] * 3).flagged
