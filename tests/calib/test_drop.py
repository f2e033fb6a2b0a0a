from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.calib.drop import Change, Changes, DropCheck, fewest_flips, right
from oat_edge.evaluation.precisions import drop_of
from oat_edge.nn.fold import fold
from oat_edge.runtime import open_runner
from oat_edge.runtime.runner import RunnerIO
from oat_edge.runtime.torch_runner import TorchRunner
from oat_edge.train.checkpoint import load_checkpoint

N = 400


def drop(lost: int, gained: int, right: int = N // 2):
    """`right` images are right in float32; some of them are lost, some of the others gained."""
    before = np.arange(N) < right
    after = before.copy()
    after[:lost], after[right : right + gained] = False, True
    return drop_of(before, after)


def changes(*pairs):
    """(standard, robust) drops, one pair per λ."""
    made = [
        Change(lam=place / 10, standard=standard, robust=robust)
        for place, (standard, robust) in enumerate(pairs)
    ]
    return Changes(changes=tuple(made), num_images=N)


SAME = drop(0, 0)


def test_what_is_the_same_fails_at_no_limit():
    assert changes(*[(SAME, SAME)] * 6).beyond(0.0) is None


@given(st.integers(0, 40), st.integers(1, 12))
def test_what_flips_both_ways_alike_is_chance(num, num_lambdas):
    assert changes(*[(drop(num, num), drop(num, num))] * num_lambdas).beyond(0.0) is None


@given(st.integers(20, 100), st.floats(0, 10))
def test_a_loss_fails_exactly_above_the_limit(lost, points):
    share = 100 * lost / N
    for pair, name in (((drop(lost, 0), SAME), "SA"), ((SAME, drop(lost, 0)), "RA")):
        found = changes((SAME, SAME), pair).beyond(points)
        assert found == (None if share <= points else (pytest.approx(share), name, 0.1))


def test_gained_accuracy_is_welcome_gained_robustness_is_not():
    assert changes((drop(0, 40), SAME)).beyond(0.5) is None
    assert changes((SAME, drop(0, 40))).beyond(0.5) == (-10.0, "RA", 0.0)


def test_few_images_prove_nothing():
    assert changes((drop(3, 0), SAME)).beyond(0.5) is None


@given(st.integers(1, 12))
def test_what_can_be_told_from_chance_is_said(num_lambdas):
    fewest = fewest_flips(num_lambdas)
    rest = [(SAME, SAME)] * (num_lambdas - 1)
    assert changes((drop(fewest - 1, 0), drop(0, fewest - 1)), *rest).beyond(0.0) is None
    for pair in ((drop(fewest, 0), SAME), (SAME, drop(0, fewest))):
        found = changes(pair, *rest)
        assert found.beyond(0.0) is not None
        assert found.to_json()["detectable"] == pytest.approx(abs(found.worst[0]))


def test_the_worst_is_the_largest_change_either_way():
    made = changes((drop(2, 0), SAME), (SAME, drop(0, 8)))
    assert made.worst == (-2.0, "RA", 0.1)


@pytest.fixture(scope="module")
def check(trained_run, digits):
    network = load_checkpoint(trained_run).network
    settings = {"num_images": 40, "eps": 24 / 255, "attack_steps": 2, "attack_alpha": None}
    return DropCheck(fold(network, 1.0), digits.val, lambdas=(0.0, 1.0), **settings)


def test_both_kinds_are_of_the_same_images_in_the_same_order(check, digits):
    for clean, attacked in zip(check.clean, check.attacked, strict=True):
        assert np.array_equal(clean.indices, attacked.indices) and len(clean) == 40
        assert np.array_equal(clean.images, digits.val.images[clean.indices])
        distance = np.abs(clean.images.astype(int) - attacked.images)
        assert 0 < distance.max() <= 24


def test_a_network_beside_itself_has_not_changed(check, trained_run):
    checkpoint = load_checkpoint(trained_run)
    folded = fold(checkpoint.network, 1.0)
    with TorchRunner(folded, RunnerIO.of(checkpoint.spec)) as runner:
        found = check.changes(runner, runner, folded)
        assert found.worst[0] == 0 and [one.lam for one in found.changes] == [0.0, 1.0]
        clean = right(runner, check.clean[0])
        assert found.changes[0].standard.fp32 == clean.mean() > 0.5
        assert found.changes[0].robust.fp32 < clean.mean()


def test_logits_that_are_no_numbers_are_wrong(check, tiny_bundle):
    with open_runner(tiny_bundle.path, width=1.0) as runner:
        assert right(runner, check.clean[0]).any()
        runner._run = lambda image, lam: np.full((len(image), 10), np.nan, np.float32)
        assert not right(runner, check.clean[0]).any()
