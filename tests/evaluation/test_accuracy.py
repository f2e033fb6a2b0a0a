from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.errors import InputError
from oat_edge.evaluation.accuracy import evaluate_pack, to_float, wilson_interval
from oat_edge.runtime.runner import Runner, RunnerIO

CHECKPOINT = "c" * 64


class LinearRunner(Runner):
    """logits = image @ W + λ·v, in numpy; remembers the batches it got."""

    def __init__(self, pinned_lambda=None):
        self.io = RunnerIO(
            image_shape=(1, 4, 4),
            num_classes=3,
            lambdas=(0.0, 0.3, 1.0),
            pinned_lambda=pinned_lambda,
        )
        rng = np.random.default_rng(1)
        self.weight = rng.normal(size=(16, 3)).astype(np.float32)
        self.shift = 2 * rng.normal(size=3).astype(np.float32)
        self.batches = []

    def _run(self, image, lam):
        self.batches.append((image, lam))
        return image.reshape(len(image), -1) @ self.weight + lam[:, None] * self.shift


def evaluate(runner, packs, **options):
    facts = {"width": 0.5, "checkpoint_sha256": CHECKPOINT, **options}
    return evaluate_pack(runner, packs, **facts)


def hits(pack, images, lam):
    """Right or wrong for each image, on its own."""
    runner = LinearRunner()
    logits = [runner.infer(to_float(image[None]), lam)[0] for image in images]
    return np.argmax(logits, axis=1) == pack.labels


@pytest.mark.parametrize("batch_size", [1, 7, 40, 64])
def test_figures_follow_their_definitions(make_pack, batch_size):
    pgd, apgd = make_pack("pgd20"), make_pack("apgd")
    found = evaluate(LinearRunner(), [pgd, apgd], batch_size=batch_size)
    assert list(found) == [0.0, 0.3, 1.0]
    some_fooled = False
    for index, (lam, accuracy) in enumerate(found.items()):
        clean = hits(pgd, pgd.images, lam)
        by_pgd = hits(pgd, pgd.adversarial[index], lam)
        by_apgd = hits(apgd, apgd.adversarial[index], lam)
        assert accuracy.standard_accuracy == clean.mean()
        assert accuracy.robust_accuracy == {
            "pgd20": by_pgd.mean(),
            "apgd": by_apgd.mean(),
            "worst": (clean & by_pgd & by_apgd).mean(),
        }
        assert accuracy.num_samples == 40
        some_fooled |= accuracy.robust_accuracy["worst"] < min(by_pgd.mean(), by_apgd.mean())
    assert some_fooled  # else the data could not tell the worst case from a minimum of shares


def test_runner_gets_levels_over_255_in_float32_and_the_lambda_asked_for(make_pack):
    runner, pack = LinearRunner(), make_pack(lambdas=(0.3,))
    evaluate(runner, [pack], batch_size=16)
    images = np.concatenate([image for image, _ in runner.batches])
    expected = np.concatenate([pack.images, pack.adversarial[0]])
    assert np.array_equal(images, expected.astype(np.float32) / np.float32(255))
    assert {len(image) for image, _ in runner.batches} == {16, 8}
    assert all((lam == np.float32(0.3)).all() for _, lam in runner.batches)


def test_packs_of_different_size_are_compared_on_their_common_images(make_pack):
    pgd = make_pack("pgd20", indices=range(0, 40))
    apgd = make_pack("apgd", indices=[50, 39, 3, 17, 21, 60])  # another order too
    both = evaluate(LinearRunner(), [pgd, apgd])
    common = [39, 3, 17, 21]
    same = evaluate(
        LinearRunner(), [make_pack("pgd20", indices=common), make_pack("apgd", indices=common)]
    )
    assert both == same and both[0.0].num_samples == 4


def test_a_lambda_that_one_pack_lacks_is_evaluated_with_the_others(make_pack):
    found = evaluate(LinearRunner(), [make_pack("pgd20"), make_pack("apgd", lambdas=(1.0,))])
    assert set(found[0.3].robust_accuracy) == {"pgd20", "worst"}
    assert set(found[1.0].robust_accuracy) == {"pgd20", "apgd", "worst"}


def test_lambdas_can_be_chosen_and_unknown_ones_have_no_entry(make_pack):
    found = evaluate(LinearRunner(), [make_pack()], lambdas=(0.3, 0.5))
    assert list(found) == [0.3]
    assert evaluate(LinearRunner(), []) == {}


def test_a_pinned_runner_is_evaluated_at_its_lambda_only(make_pack):
    assert list(evaluate(LinearRunner(pinned_lambda=0.3), [make_pack()])) == [0.3]
    assert evaluate(LinearRunner(pinned_lambda=0.2), [make_pack()]) == {}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"width": 0.75}, "width 0.75"),
        ({"checkpoint_sha256": "d" * 64}, "checkpoint dddd"),
        ({"attack": "worst"}, "worst"),
    ],
)
def test_packs_of_something_else_are_refused(make_pack, change, match):
    with pytest.raises(InputError, match=match):
        evaluate(LinearRunner(), [make_pack(**change)])


def test_packs_that_do_not_fit_together_are_refused(make_pack):
    pgd, apgd = make_pack("pgd20"), make_pack("apgd")
    with pytest.raises(InputError, match="two packs"):
        evaluate(LinearRunner(), [pgd, make_pack("pgd20", lambdas=(1.0,))])
    with pytest.raises(InputError, match="eps"):
        evaluate(LinearRunner(), [pgd, dataclasses.replace(apgd, eps=65 / 255)])
    with pytest.raises(InputError, match="no image in common"):
        evaluate(LinearRunner(), [pgd, make_pack("apgd", indices=[50, 51])])
    relabelled = dataclasses.replace(apgd, labels=(apgd.labels + 1) % 3)
    with pytest.raises(InputError, match="hold different ones"):
        evaluate(LinearRunner(), [pgd, relabelled])


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
