from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.errors import GateError
from oat_edge.evaluation.parity import (
    MIN_AGREEMENT,
    Agreement,
    batch_sizes,
    compare_logits,
    compared_lambdas,
    expected_logits,
    gate_for,
    requests,
)
from oat_edge.runtime.recipe import Recipe
from tests.evaluation.conftest import LinearRunner

LAMBDAS = (0.0, 0.15, 0.3, 1.0)
IMAGES = np.random.default_rng(5).random((9, 1, 4, 4), dtype=np.float32)


class Changed(LinearRunner):
    """`change` has the last word on every request: (images, λ, logits) to logits."""

    backend = "numpy"

    def __init__(self, change=lambda image, lam, logits: logits):
        super().__init__()
        self.change = change

    def _run(self, image, lam):
        return self.change(image, lam, super()._run(image, lam))


def compare(change=lambda image, lam, logits: logits, *, sizes=(1, 5, 8), images=IMAGES):
    reference, runner = LinearRunner(), Changed(change)
    expected = expected_logits(reference.infer, images, LAMBDAS)
    assert all(len(set(lam.tolist())) == 1 for _, lam in reference.batches)
    return compare_logits(runner, images, LAMBDAS, expected, sizes=sizes), runner


@given(st.integers(1, 7), st.integers(1, 40), st.sets(st.integers(1, 40), min_size=1, max_size=4))
def test_every_pair_is_compared_in_a_mixed_batch_and_every_lambda_alone(lambdas, images, sizes):
    sizes = tuple(sorted(sizes))
    made = list(requests(lambdas, images, sizes))
    assert all(len(lam) == len(image) and len(lam) in sizes for lam, image in made)
    assert all(set(lam) <= {*range(lambdas)} and set(image) <= {*range(images)}
               for lam, image in made)  # fmt: skip
    num = -(-lambdas * images // sizes[-1])
    pairs = [pair for lam, image in made[:num] for pair in zip(lam, image, strict=True)]
    assert set(pairs) == set(itertools.product(range(lambdas), range(images)))
    assert len(pairs) < lambdas * images + sizes[-1]
    if sizes[-1] > 1 and lambdas > 1:
        assert all(len(set(lam)) > 1 for lam, _ in made[:num])
    alone = {(len(lam), lam[0]) for lam, _ in made if len(set(lam)) == 1}
    assert alone >= set(itertools.product(sizes, range(lambdas)))


def test_every_batch_size_but_one_sees_mixed_lambdas():
    mixed = {len(lam) for lam, _ in requests(4, 9, (1, 3, 8)) if len(set(lam)) > 1}
    assert mixed == {3, 8}


@given(st.tuples(*[st.integers(1, 4096)] * 3).map(sorted), st.booleans())
def test_batches_stay_inside_the_profile_of_an_engine(batches, says_its_limit):
    runner = LinearRunner()
    runner.batch_limit = batches[2] if says_its_limit else None
    sizes = batch_sizes(runner, Recipe(batches=tuple(batches)).batches)
    assert sizes == tuple(sorted(set(sizes)))
    assert batches[0] <= sizes[0] and sizes[-1] <= batches[2]
    assert (sizes[0] == 1) == (batches[0] == 1) and batches[1] in sizes
    assert sizes[-1] == batches[2] or sizes[-1] >= 256


def test_without_a_profile_there_are_small_and_large_batches():
    assert batch_sizes(LinearRunner()) == (1, 5, 32)


def test_an_equal_runner_agrees_in_everything():
    found, runner = compare()
    assert found.max_abs_diff <= 1e-6 and found.argmax_agreement == 1.0
    assert 0 <= found.mean_abs_diff <= found.max_abs_diff
    assert (found.num_pairs, found.num_not_finite) == (len(LAMBDAS) * len(IMAGES), 0)
    assert [one.lam for one in found.by_lambda] == list(LAMBDAS)
    assert {len(image) for image, _ in runner.batches} == {1, 5, 8} == set(found.batch_sizes)


def test_figures_are_those_of_the_pairs():
    def change(image, lam, logits):
        wrong = logits.copy()
        wrong[lam == np.float32(0.3), 1] += 0.25
        return wrong

    found, _ = compare(change)
    assert found.max_abs_diff == pytest.approx(0.25, rel=1e-4)
    at = {one.lam: one for one in found.by_lambda}
    assert found.worst_lambda == at[0.3] and at[0.3].max_abs_diff == found.max_abs_diff
    assert at[0.3].mean_abs_diff == pytest.approx(0.25 / 3, rel=1e-4)  # one of three logits
    assert found.mean_abs_diff == pytest.approx(0.25 / 3 / 4, rel=1e-4)
    assert at[0.0].max_abs_diff <= 1e-6 and at[0.15].max_abs_diff <= 1e-6


def test_a_pair_agrees_only_if_it_does_in_every_batch():
    """Right in every batch of one λ, wrong for one image among mixed λ."""

    def change(image, lam, logits):
        if len(set(lam.tolist())) == 1:
            return logits
        first = (image == IMAGES[0]).all(axis=(1, 2, 3))
        return np.where(first[:, None], -logits, logits)

    found, _ = compare(change)
    wrong = round((1 - found.argmax_agreement) * found.num_pairs)
    assert wrong == len(LAMBDAS) and found.num_pairs == len(LAMBDAS) * len(IMAGES)


@pytest.mark.parametrize("size", [1, 5, 8])
def test_a_batch_size_that_goes_wrong_is_found(size):
    found, _ = compare(lambda image, lam, logits: logits + (len(image) == size))
    assert found.max_abs_diff == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["artifact", "reference"])
def test_what_is_not_a_number_counts_as_wrong_and_never_passes(value, side):
    expected = expected_logits(LinearRunner().infer, IMAGES, LAMBDAS)
    if side == "reference":
        expected[1, 4, 0] = value

    def change(image, lam, logits):
        hit = (image == IMAGES[4]).all(axis=(1, 2, 3)) & (lam == np.float32(0.15))
        return np.where(hit[:, None] & (side == "artifact"), np.float32(value), logits)

    runner = Changed(change)
    found = compare_logits(runner, IMAGES, LAMBDAS, expected, sizes=(1, 5))
    assert found.num_not_finite == 1 and found.max_abs_diff is None is found.mean_abs_diff
    assert found.argmax_agreement == 1 - 1 / found.num_pairs
    assert [one.max_abs_diff is None for one in found.by_lambda] == [False, True, False, False]
    assert found.worst_lambda.lam == 0.15
    gates = [gate_for(precision, "cpu") for precision in ("fp32", "fp16", "int8")]
    assert [gate.passed(found) for gate in gates] == [False] * 3


def test_logits_of_another_shape_are_an_error_and_not_broadcast():
    with pytest.raises(GateError, match=r"\(1, 3\) for 8 images, expected \(8, 3\)"):
        compare(lambda image, lam, logits: logits[:1])


def test_progress_grows_to_one():
    shares = []
    expected = expected_logits(LinearRunner().infer, IMAGES, LAMBDAS)
    compare_logits(LinearRunner(), IMAGES, LAMBDAS, expected, sizes=(1, 5), progress=shares.append)
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == 1.0


def agreement(max_abs_diff=0.0, argmax_agreement=1.0, num_not_finite=0, relative_diff=0.0):
    return Agreement(
        max_abs_diff=max_abs_diff,
        relative_diff=relative_diff,
        mean_abs_diff=max_abs_diff,
        argmax_agreement=argmax_agreement,
        num_pairs=1000,
        num_not_finite=num_not_finite,
        by_lambda=(),
        batch_sizes=(1,),
    )


@pytest.mark.parametrize(
    ("precision", "device", "just_good", "just_bad"),
    [
        ("fp32", "cpu", {"max_abs_diff": 1e-4}, {"max_abs_diff": 1.01e-4}),
        ("fp32", "cuda", {"max_abs_diff": 1e-3}, {"max_abs_diff": 1.01e-3}),
        ("fp16", "cuda", {"argmax_agreement": 0.995}, {"argmax_agreement": 0.994}),
        ("fp16-emulated", "cpu", {"argmax_agreement": 0.995}, {"argmax_agreement": 0.994}),
        ("fp16", "cuda", {"relative_diff": 0.02}, {"relative_diff": 0.021}),
    ],
)
def test_gates_are_those_of_the_design(precision, device, just_good, just_bad):
    gate = gate_for(precision, device)
    assert gate.passed(agreement(**just_good)) is True
    assert gate.passed(agreement(**just_bad)) is False


def test_half_precision_may_move_logits_as_long_as_classes_stay():
    gate = gate_for("fp16", "cuda")
    assert gate.kind == "argmax_agreement" and gate.limit == MIN_AGREEMENT
    assert gate.passed(agreement(max_abs_diff=0.5, relative_diff=0.01)) is True
    assert gate.passed(agreement(max_abs_diff=0.5, relative_diff=0.05)) is False


@pytest.mark.parametrize("precision", ["int8", "int8-emulated"])
def test_int8_has_no_gate_but_must_be_numbers(precision):
    gate = gate_for(precision, "cpu")
    assert gate.passed(agreement(max_abs_diff=3.0, argmax_agreement=0.5)) is None
    assert gate.passed(agreement(num_not_finite=1)) is False


def test_an_unknown_precision_has_no_silent_gate():
    with pytest.raises(ValueError, match="tf32"):
        gate_for("tf32", "cuda")


@given(st.lists(st.integers(1, 99).map(lambda n: n / 100), unique=True, max_size=6).map(sorted))
def test_all_knots_gaps_and_a_lambda_below_the_first_knot_are_compared(inner):
    knots = (0.0, *inner, 1.0)
    compared = compared_lambdas(knots)
    assert set(knots) < set(compared) and list(compared) == sorted(set(compared))
    for low, high in itertools.pairwise(knots):
        assert any(low < lam < high for lam in compared)
    assert any(0 < lam < knots[1] / 2 for lam in compared)


def test_a_dedicated_network_is_compared_at_its_lambda():
    assert compared_lambdas((0.3,)) == (0.3,)
