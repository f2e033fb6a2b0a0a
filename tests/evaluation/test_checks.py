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
    SHARE,
    TOO_WEAK,
    check_randomised,
    check_square,
    check_square_part,
    check_weaker,
    sign_test,
)

COUNTS = st.integers(0, 300)
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
TOO_FEW = "needs 50 images or more, there were {}"


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
    n = len(pairs)
    only_first = int((second & ~first).sum())
    only_second = int((first & ~second).sum())
    for check, more, fewer in ((one, only_first, only_second), (other, only_second, only_first)):
        if sign_test(more, fewer) < P_VALUE and more - fewer >= SHARE * n:
            assert check.flagged is True
        else:
            assert check.flagged is (None if n < 50 else False)
        if check.flagged is None:
            assert check.evidence == TOO_FEW.format(n)
        else:
            assert f"first alone {more}, by the second alone {fewer}" in check.evidence
            assert check.evidence.endswith(f"of {n}")


@given(pairs=PAIRS, order=st.randoms())
def test_neither_the_order_of_images_nor_those_that_agree_matter(pairs, order):
    """Up to the 1 % that a difference must be: of 160 images, two, and chance needs more."""
    few = [*pairs, *[(True, True), (False, False)] * 25]
    many = [*pairs, *[(True, True), (False, False)] * 50]
    order.shuffle(many)
    flagged = [check_weaker("x", "A", "B", *both(p)).flagged for p in (few, many)]
    assert flagged[0] is flagged[1] is not None


@given(strong=st.lists(st.booleans(), min_size=1, max_size=60), data=st.data())
def test_an_attack_that_fools_a_part_of_the_others_images_is_never_suspect(strong, data):
    strong_right = np.array(strong)
    weak_right = strong_right | np.array([data.draw(st.booleans()) for _ in strong])
    assert not check_weaker("x", "A", "B", weak_right, strong_right).flagged


@given(n=st.integers(1, 120), num_for=COUNTS, num_against=COUNTS)
def test_too_few_images_may_flag_but_never_clear(n, num_for, num_against):
    num_for = min(num_for, n)
    num_against = min(num_against, n - num_for)
    weak, strong = np.arange(n) >= num_for, np.arange(n) < n - num_against
    assert int((strong & ~weak).sum()) == num_for and int((weak & ~strong).sum()) == num_against
    check = check_weaker("x", "A", "B", weak, strong)
    if n < 50:
        assert check.flagged in (True, None)
    else:
        assert check.flagged in (True, False)
    if num_for == num_against:
        assert not check.flagged


@pytest.mark.parametrize(("n", "flagged"), [(1000, True), (1001, False), (9, None), (10, True)])
def test_significant_is_not_enough_a_hundredth_of_the_images_it_must_be(n, flagged):
    """Ten of a thousand, of one more, of ten; and all of nine, which is still chance."""
    num = min(10, n)
    weak_right = np.arange(n) >= num
    check = check_weaker("x", "A", "B", weak_right, np.ones(n, dtype=bool))
    assert check.flagged is flagged
    if flagged is None:
        assert check.evidence == TOO_FEW.format(n)


def test_the_difference_counts_not_those_of_one_side():
    """60 against 15 of 5000 is no chance, and 45 of 5000 is less than 1 %."""
    index = np.arange(5000)
    weak, strong = index >= 60, index < 5000 - 15
    assert sign_test(60, 15) < P_VALUE
    assert check_weaker("x", "A", "B", weak, strong).flagged is False
    assert check_weaker("x", "A", "B", weak[:4500], strong[500:]).flagged is True


SQUARED = st.integers(1, 200).flatmap(
    lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n)] * 2)
)


@given(both=SQUARED)
def test_square_stronger_than_pgd_alone_says_that_pgd_is_weak_not_that_gradients_lie(both):
    white_box, square = (np.array(right) for right in both)
    plain = check_weaker("square", "Square", "PGD-20", square, white_box)
    assert check_square("PGD-20", white_box, square, complete=True) == plain
    alone = check_square("PGD-20", white_box, square, complete=False)
    if plain.flagged:
        assert alone.flagged is None and alone.evidence == f"{plain.evidence}: {TOO_WEAK}"
    else:
        assert alone == plain and TOO_WEAK not in alone.evidence


@pytest.mark.parametrize(
    ("complete", "flagged"), [(True, True), (False, None)], ids=["with APGD", "PGD-20 alone"]
)
def test_square_that_fools_thirty_more_of_a_hundred(complete, flagged):
    white_box, square = np.ones(100, dtype=bool), np.arange(100) >= 30
    check = check_square("PGD-20", white_box, square, complete=complete)
    assert check.name == "square" and check.flagged is flagged
    assert check.evidence.startswith("70.0 % right under Square, 100.0 % under PGD-20")
    assert check.evidence.endswith(TOO_WEAK) == (flagged is None)
    # And the other way round, which is as it should be.
    assert check_square("PGD-20", square, white_box, complete=complete).flagged is False


@pytest.mark.parametrize(
    ("fooled", "num", "flagged"),
    [
        (0, 10, False), (2, 10, False), (3, 10, True), (2, 100, False), (3, 100, True),
        (20, 1000, False), (21, 1000, True),
    ],
)  # fmt: skip
def test_what_autoattacks_square_may_add_is_two_images_or_two_percent(fooled, num, flagged):
    check = check_square_part(fooled, num // 2, num)
    assert check.name == "square" and check.flagged is flagged
    assert f"fooled {fooled} of the {num // 2} images" in check.evidence
    assert check.evidence.endswith(f"of {num}")


def test_ten_images_to_none_are_no_chance_and_nine_are():
    for num, flagged in ((9, False), (10, True)):
        weak_right = np.arange(100) >= num
        check = check_weaker("x", "FGSM", "PGD", weak_right, np.ones(100, dtype=bool))
        assert check.flagged == flagged
        assert f"{100 - num}.0 % right under FGSM, 100.0 % under PGD" in check.evidence


IMAGES, LABELS = np.zeros((4, 1, 2, 2), dtype=np.uint8), np.array([0, 1, 0, 1])
LOGITS = np.array([[2, 1], [1, 2], [5, 3], [3, 1]], dtype=np.float32)


def randomised(*passes, batch_size=250):
    assert len(passes) == PASSES
    step = min(batch_size, len(IMAGES))
    answers = iter(
        [one[start : start + step] for one in passes for start in range(0, len(one), step)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check = check_randomised(lambda image: next(answers), IMAGES, LABELS, batch_size)
    return check


def test_equal_answers_are_not_randomised_and_rounding_is_forgiven():
    check = randomised(LOGITS, LOGITS * (1 + 1e-6), LOGITS)
    assert check.flagged is False and "right are 3, 3, 3" in check.evidence


@pytest.mark.parametrize("batch_size", [1, 3, 250])
@pytest.mark.parametrize("place", [1, 2])
def test_one_answer_that_differs_in_any_pass_is_randomised(place, batch_size):
    """In the last image, which is wrong anyway: neither shares nor batches may hide it."""
    answers = [LOGITS.copy() for _ in range(PASSES)]
    answers[place][3, 0] = 3 + 20 * RANDOM_TOLERANCE
    check = randomised(*answers, batch_size=batch_size)
    assert check.flagged is True and f"{PASSES} passes over 4 images" in check.evidence
    assert randomised(*[LOGITS] * PASSES, batch_size=batch_size).flagged is False


@pytest.mark.parametrize("batch_size", [1, 3, 250])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_flagged_as_that(place, bad, batch_size):
    """Not as randomised: the same ones in every pass are told too."""
    answers = [LOGITS.copy() for _ in range(PASSES)]
    for one in answers[place:]:
        one[1, 0] = one[3, 1] = bad
    check = randomised(*answers, batch_size=batch_size)
    assert check.flagged is True and check.name == "randomised output"
    assert check.evidence == "logits of 2 of 4 images are not finite"


@pytest.mark.parametrize("batch_size", [1, 4, 5, 9, 250])
def test_every_image_is_passed_in_order_and_no_batch_is_larger_than_asked_for(batch_size):
    seen = []
    images = np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1)

    def infer(image):
        seen.append(np.rint(255 * image[:, 0, 0, 0]).astype(int).tolist())
        return np.eye(9, dtype=np.float32)[seen[-1]]

    check = check_randomised(infer, images, np.arange(9), batch_size)
    assert check.flagged is False and "right are 9, 9, 9" in check.evidence
    assert max(map(len, seen)) == min(batch_size, 9)
    assert [image for batch in seen for image in batch] == [*range(9)] * PASSES


def test_logits_of_any_scale_are_compared_by_their_direction():
    assert not randomised(*[1e-20 * LOGITS] * 3).flagged
    assert not randomised(*[1e20 * LOGITS] * 3).flagged
    assert not randomised(*[0 * LOGITS] * 3).flagged
