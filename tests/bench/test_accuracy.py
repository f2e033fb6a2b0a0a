from __future__ import annotations

import dataclasses

import pytest

from oat_edge.bench.accuracy import accuracy_seconds, attack_settings, measure_outcomes
from oat_edge.bench.inputs import load_packs
from oat_edge.runtime import open_artifact
from tests.bench.conftest import QUICKEST

BOTH = dataclasses.replace(QUICKEST, attacks=("pack", "square"), queries=40, accuracy_batch=5)


@pytest.fixture
def packs(bundle):
    return load_packs(bundle, ("pack",))


@pytest.fixture
def runner(bundle):
    with open_artifact(bundle, bundle.select(format="onnx", width=0.5)) as opened:
        yield opened


def measured(runner, packs, lambdas, config):
    calls = []
    outcomes = measure_outcomes(
        runner, packs, 0.5, lambdas, config, lambda *call: calls.append(call), label="accuracy"
    )
    return outcomes, calls


@pytest.mark.parametrize(
    ("attacks", "lambdas"),
    [
        (("pack",), {0.0, 0.3}),
        (("square",), {0.0, 0.3, 0.7}),
        (("pack", "square"), {0.0, 0.3, 0.7}),
    ],
)
def test_a_lambda_that_nothing_attacks_has_no_outcome(runner, packs, attacks, lambdas):
    config = dataclasses.replace(BOTH, attacks=attacks)
    outcomes, _ = measured(runner, packs, (0.0, 0.3, 0.7), config)
    assert set(outcomes) == lambdas


def test_without_packs_there_is_nothing(runner):
    assert measured(runner, None, (0.0,), BOTH) == ({}, [])
    assert attack_settings(None, BOTH) == {}


@pytest.mark.parametrize("attacks", [("pack",), ("square",), ("pack", "square")])
@pytest.mark.parametrize("transfer", [True, False])
def test_progress_is_real_and_ends_where_the_work_does(runner, packs, attacks, transfer):
    """One call per request. After the last replay nothing is left; Square may end sooner."""
    config = dataclasses.replace(BOTH, attacks=attacks, transfer=transfer)
    requests = []
    infer = runner.infer
    runner.infer = lambda image, lam: requests.append(len(image)) or infer(image, lam)
    _, calls = measured(runner, packs, (0.0, 1.0), config)
    assert len(calls) == len(requests) and max(requests) <= 5
    done = [done_s for done_s, _, _ in calls]
    assert done == sorted(done) and all(total >= done_s for done_s, total, _ in calls)
    if attacks == ("pack",):
        assert calls[-1][0] == calls[-1][1]


def test_square_does_not_depend_on_how_images_are_batched(runner, packs):
    one, _ = measured(runner, packs, (0.3,), BOTH)
    other, _ = measured(runner, packs, (0.3,), dataclasses.replace(BOTH, accuracy_batch=64))
    assert (one[0.3].attacked["square"] == other[0.3].attacked["square"]).all()


def test_what_is_wrong_clean_is_not_attacked_and_stays_wrong(runner, packs):
    outcome = measured(runner, packs, (0.3,), BOTH)[0][0.3]
    assert not outcome.clean.all() and outcome.clean.any()
    assert not (outcome.attacked["square"] & ~outcome.clean).any()


def test_an_estimate_is_the_images_that_are_shown_times_their_pace(runner, packs):
    """Exact for replays; Square may end sooner, so that more queries are no less."""
    shown = []
    infer = runner.infer
    runner.infer = lambda image, lam: shown.append(len(image)) or infer(image, lam)
    replays = dataclasses.replace(BOTH, attacks=("pack",))
    measured(runner, packs, (0.0, 1.0), replays)
    assert accuracy_seconds(0.5, packs, 0.5, (0.0, 1.0), replays) == 0.5 * sum(shown)
    few = accuracy_seconds(0.5, packs, 0.5, (0.0,), dataclasses.replace(BOTH, queries=10))
    assert 0 < few < accuracy_seconds(0.5, packs, 0.5, (0.0,), BOTH)
    assert accuracy_seconds(0.5, packs, 0.5, (0.7,), QUICKEST) == 0.0  # nothing to replay
