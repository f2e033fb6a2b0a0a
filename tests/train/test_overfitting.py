from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.data import Dataset, load
from oat_edge.errors import InputError
from oat_edge.train.checkpoint import CHECKPOINT, load_checkpoint
from oat_edge.train.loop import Trainer
from oat_edge.train.overfitting import robust_overfitting
from tests.conftest import tiny_config

N = 200


def _metrics(robust: list[float], losses: list[float], lam: float = 1.0) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; each epoch between two validations has none."""
    lines: list[dict[str, Any]] = []
    for number, (accuracy, loss) in enumerate(zip(robust, losses, strict=True)):
        points = [
            {"width": width, "lambda": at, "standard_accuracy": 0.9, "robust_accuracy": value}
            for width in (0.5, 1.0)
            for at, value in ((0.0, 0.0), (lam, accuracy + (width - 0.75) / 10))
            if at <= lam
        ]
        lines.append({"epoch": 2 * number, "loss": loss})
        lines.append({"epoch": 2 * number + 1, "loss": loss, "validation": points, "score": 0.5})
    return lines


def _falling(count: int) -> list[float]:
    return [2.0 - number / count for number in range(count)]


def test_a_lasting_fall_under_a_falling_loss_is_found_at_its_third_validation() -> None:
    robust = [0.3, 0.45, 0.5, 0.48, 0.4, 0.38, 0.39, 0.36]
    found = robust_overfitting(_metrics(robust, _falling(8)), N)
    assert found is not None
    assert (found.best_epoch, found.epoch) == (5, 13)
    assert found.best_robust == pytest.approx(0.5)
    assert found.robust == pytest.approx(0.39)
    assert "fell from 50.0% (epoch 6) to 39.0% (epoch 14)" in str(found)


@given(
    center=st.floats(0.1, 0.9),
    noise=st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=30),
)
def test_noise_about_a_level_is_not_overfitting(center: float, noise: list[float]) -> None:
    spread = 1.96 * math.sqrt(center * (1 - center) / N) / 2
    robust = [center + spread * value for value in noise]
    assert robust_overfitting(_metrics(robust, _falling(len(robust))), N) is None


@given(st.lists(st.floats(0.1, 0.9), min_size=1, max_size=20).map(sorted))
def test_rising_accuracy_is_not_overfitting(robust: list[float]) -> None:
    assert robust_overfitting(_metrics(robust, _falling(len(robust))), N) is None


def test_two_bad_validations_a_collapse_and_standard_training_are_not_it() -> None:
    fall = [0.5, 0.5, 0.2, 0.2, 0.2]
    assert robust_overfitting(_metrics(fall, _falling(5)), N) is not None
    assert robust_overfitting(_metrics(fall[:-1], _falling(4)), N) is None
    assert robust_overfitting(_metrics(fall, _falling(5)[::-1]), N) is None
    assert robust_overfitting(_metrics(fall, _falling(5), lam=0.0), N) is None
    assert robust_overfitting([], N) is None


def _with_label_noise(dataset: Dataset, share: float) -> Dataset:
    rng = np.random.default_rng(0)
    labels = dataset.train.labels.copy()
    wrong = rng.random(len(labels)) < share
    labels[wrong] = rng.integers(0, 10, wrong.sum())
    return dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, labels=labels))


def _config(**changes: object) -> Any:
    return tiny_config(
        widths=(1.0,),
        lambdas=(1.0,),
        eps=24 / 255,
        crop=0,
        weight_decay=0.0,
        val_attack_samples=500,
        **changes,
    )


def test_it_happens_on_few_images_with_wrong_labels_and_the_checkpoint_before_is_kept(
    tmp_path: Path,
) -> None:
    dataset = _with_label_noise(load("digits", train_samples=150), 0.3)
    config = _config(train_samples=150, epochs=24, val_every=2, batch_size=30)
    trainer = Trainer(config, dataset, tmp_path)
    trainer.train()
    found = trainer.overfitting
    assert found is not None, [m["validation"][0] for m in trainer.state.metrics if "score" in m]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    said = [line["epoch"] for line in lines if "robust_overfitting" in line]
    assert said == [found.epoch]
    info = load_checkpoint(tmp_path).info
    assert info["epoch"] < found.epoch
    assert info["robust_overfitting"]["best_epoch"] == found.best_epoch
    # Resuming the finished run finds the same.
    (tmp_path / CHECKPOINT).unlink()
    Trainer(config, dataset, tmp_path, resume=True).train()
    assert load_checkpoint(tmp_path).info == info


def test_it_does_not_happen_where_there_are_images_enough(tmp_path: Path) -> None:
    config = _config(train_samples=None, epochs=6, batch_size=128)
    trainer = Trainer(config, load("digits"), tmp_path)
    trainer.train()
    assert trainer.overfitting is None
    assert "robust_overfitting" not in load_checkpoint(tmp_path).info


def test_patience_ends_a_run_that_no_longer_improves(digits: Dataset, tmp_path: Path) -> None:
    small = {"widths": (1.0,), "lambdas": (0.0,), "attack_steps": 1, "val_attack_samples": 8}
    config = tiny_config(epochs=40, lr=1e-9, patience=2, val_every=2, **small)
    trainer = Trainer(config, digits, tmp_path)
    trainer.train()
    state = trainer.state
    assert state.best_epoch is not None
    assert state.epoch < 40
    assert state.epoch == state.best_epoch + 1 + 2 * 2, "two validations, two epochs apart"
    again = Trainer(config, digits, tmp_path, resume=True)
    again.train()
    assert again.state.epoch == state.epoch


def test_resume_does_not_accept_another_patience(digits: Dataset, tmp_path: Path) -> None:
    Trainer(tiny_config(epochs=1), digits, tmp_path).train()
    with pytest.raises(InputError, match="other settings"):
        Trainer(tiny_config(epochs=1, patience=3), digits, tmp_path, resume=True)
