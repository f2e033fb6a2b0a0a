from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from oat_edge.evaluation.accuracy import to_float
from oat_edge.evaluation.outcome import Outcome, classified_right, evaluate
from oat_edge.operating_point import OperatingPoint

flags = st_numpy.arrays(np.bool_, 9)
points = st.builds(OperatingPoint, st.sampled_from([0.5, 1.0]), st.sampled_from([0.0, 0.3, 1.0]))
outcomes = st.builds(
    Outcome,
    clean=flags,
    attacked=st.dictionaries(st.sampled_from(["pgd20", "apgd", "square"]), flags),
    crafted=st.dictionaries(st.sampled_from(["pgd20 and apgd"]), flags),
    transferred=st.dictionaries(st.tuples(st.sampled_from(["pgd20", "apgd"]), points), flags),
)


@given(outcomes)
def test_worst_case_is_no_better_than_anything_that_was_tried(outcome):
    robust = outcome.robust
    tried = [outcome.clean, *outcome.attacked.values(), *outcome.transferred.values()]
    for image in range(9):
        assert robust["worst"][image] == all(right[image] for right in tried)
    accuracy = outcome.accuracy()
    shares = accuracy.robust_accuracy
    assert shares["worst"] == min(shares.values()) <= max(shares.values())
    assert max(shares.values()) <= accuracy.standard_accuracy
    assert accuracy.num_samples == 9
    assert ("transfer" in shares) == bool(outcome.transferred)


@given(outcomes)
def test_images_crafted_here_are_no_attack_of_their_own(outcome):
    """They are those of attacks that are counted already."""
    without = dataclasses.replace(outcome, crafted={})
    assert outcome.robust.keys() == without.robust.keys()
    for name, right in outcome.robust.items():
        assert np.array_equal(right, without.robust[name])


@given(outcomes)
def test_what_is_wrong_clean_is_robust_under_nothing(outcome):
    for right in outcome.robust.values():
        assert not (right & ~outcome.clean).any()


def hits(runner, images, labels, lam):
    """Right or wrong for each image, on its own."""
    logits = [runner.infer(to_float(image[None]), lam)[0] for image in images]
    return np.argmax(logits, axis=1) == labels


@pytest.mark.parametrize("batch_size", [1, 7, 40, 64])
def test_figures_follow_their_definitions(make_pack, pack_set, linear, batch_size):
    packs = pack_set(make_pack("pgd20"), make_pack("apgd"), make_pack("pgd20", width=1.0))
    some_fooled = False
    for index, lam in enumerate((0.0, 0.3, 1.0)):
        point = OperatingPoint(0.5, lam)
        outcome = evaluate(linear.at(lam), packs, point, transfer=True, batch_size=batch_size)
        clean = hits(linear, packs.images, packs.labels, lam)
        assert np.array_equal(outcome.clean, clean)
        for attack in ("pgd20", "apgd"):
            crafted = make_pack(attack).adversarial[index]
            right = hits(linear, crafted, packs.labels, lam)
            assert np.array_equal(outcome.attacked[attack], right)
            assert outcome.accuracy().robust_accuracy[attack] == (clean & right).mean()
        assert outcome.transferred.keys() == set(packs.sources) - {
            ("pgd20", point),
            ("apgd", point),
        }
        for (attack, source), right in outcome.transferred.items():
            crafted = packs.adversarial(attack, source)
            assert np.array_equal(right, hits(linear, crafted, packs.labels, lam))
        shares = outcome.accuracy().robust_accuracy
        some_fooled |= shares["worst"] < min(v for name, v in shares.items() if name != "worst")
    assert some_fooled  # else the data could not tell the worst case from a minimum of shares


def test_without_transfer_only_what_was_crafted_for_the_point_counts(make_pack, pack_set, linear):
    packs = pack_set(make_pack("pgd20"), make_pack("apgd", lambdas=(1.0,)))

    def attacked(lam):
        return evaluate(linear.at(lam), packs, OperatingPoint(0.5, lam), transfer=False)

    assert set(attacked(0.3).robust) == {"pgd20", "worst"}
    assert set(attacked(1.0).robust) == {"pgd20", "apgd", "worst"}
    assert set(attacked(0.2).robust) == {"worst"}  # nothing was crafted for this λ


def test_network_gets_levels_over_255_in_float32_and_the_lambda_asked_for(
    make_pack, pack_set, linear
):
    pack = make_pack(lambdas=(0.3,))
    evaluate(linear.at(0.3), pack_set(pack), OperatingPoint(0.5, 0.3), transfer=True, batch_size=16)
    images = np.concatenate([image for image, _ in linear.batches])
    for expected in (pack.images, pack.adversarial[0]):
        level = expected.astype(np.float32) / np.float32(255)
        assert any(np.array_equal(images[i : i + 40], level) for i in (0, 40))
    assert {len(image) for image, _ in linear.batches} == {16, 8} and len(images) == 80
    assert all((lam == np.float32(0.3)).all() for _, lam in linear.batches)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_wrong(bad):
    logits = np.array([[1.0, 0.0], [1.0, bad], [bad, 1.0]], dtype=np.float32)
    labels = np.array([0, 0, 1])
    right = classified_right(
        lambda x: logits[: len(x)], np.zeros((3, 1, 1, 1), np.uint8), labels, 3
    )
    assert right.tolist() == [True, False, False]


def test_the_worst_case_without_transfer_is_that_of_the_own_attacks():
    rng = np.random.default_rng(5)
    clean, pgd, square, other = rng.random((4, 200)) < 0.8
    source = ("pgd20", OperatingPoint(1.0, 0.0))
    outcome = Outcome(
        clean=clean, attacked={"pgd20": pgd, "square": square}, transferred={source: other}
    )
    worst = outcome.accuracy().robust_accuracy["worst"]
    assert outcome.worst_of_own == (clean & pgd & square).mean() > worst
    assert Outcome(clean=clean).worst_of_own == clean.mean()
