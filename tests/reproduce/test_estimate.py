"""Estimates add up; how good they are depends on the machine, and no test can say."""

from __future__ import annotations

import json

import pytest

from oat_edge.evaluation.config import EvalConfig
from oat_edge.reproduce.estimate import estimate
from tests.reproduce.made_up import models_of

SMALL = {"settings": {"epochs": 4, "batch_size": 24, "widths": (0.5, 1.0), "attack_steps": 1}}


@pytest.fixture(scope="module")
def found(digits, tmp_path_factory):
    _, models = models_of(dedicated=(0.0, 0.3, 0.4, 1.0), **SMALL)
    runs = tmp_path_factory.mktemp("runs")
    return models, estimate(models, digits, EvalConfig(attacks=("pgd20",), num_samples=8), runs)


def test_every_network_has_an_estimate_and_nothing_is_left_behind(found):
    models, times = found
    assert set(times) == {model.name for model in models}
    assert all(one.training_s > 0 and one.attack_s > 0 for one in times.values())


def test_networks_of_one_kind_take_the_same(found):
    _, times = found
    assert times["dedicated-lambda0.3-seed0"] == times["dedicated-lambda0.4-seed0"]


def test_what_is_trained_is_not_counted_again(found, digits, tmp_path):
    models, _ = found
    oats = models[0]
    (tmp_path / oats.name).mkdir()
    config = EvalConfig(attacks=("pgd20",), num_samples=8)
    lines = "".join(json.dumps({"epoch": epoch}) + "\n" for epoch in range(oats.config.epochs))
    (tmp_path / oats.name / "metrics.jsonl").write_text(lines)
    times = estimate([oats], digits, config, tmp_path)
    assert times[oats.name].training_s == 0 and times[oats.name].attack_s > 0
