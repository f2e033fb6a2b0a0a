"""Each quality option of training reaches the run, and what a run found is said in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from oat_edge.cli import app
from oat_edge.cli.train_run import run_training
from oat_edge.config import TrainConfig
from oat_edge.data import Dataset
from oat_edge.errors import InputError
from oat_edge.train.loop import Trainer
from tests.conftest import tiny_config

TINY = ("train", "--train-samples", "120", "--epochs", "1", "--attack-steps", "1")


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "trades", "trades_beta": 2.0, "ema": 0.9, "patience": 3, "distill": True},
        {"attack": "n-fgsm", "share_attack": "random", "sandwich": 1, "clean_images": "all",
         "label_smoothing": 0.1,
         "awp_gamma": 0.005, "swa_start": 0.5, "amp": "off"},
        {"amp": "bf16", "compile": "off"},
    ],
)  # fmt: skip
def test_options_reach_the_run(options: dict[str, object], tmp_path: Path) -> None:
    given = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        given += [flag] if value is True else [flag, str(value)]
    done = CliRunner().invoke(app, [*TINY, *given, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    config = TrainConfig.from_json(record)
    assert {name: getattr(config, name) for name in options} == options


def test_a_single_step_has_no_number_of_steps(tmp_path: Path) -> None:
    given = ["--attack", "n-fgsm", "--attack-steps", "5", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*TINY, *given])
    assert isinstance(done.exception, InputError) and "which takes one" in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_a_run_that_stops_early_or_overfits_says_so(digits: Dataset, tmp_path: Path) -> None:
    small = {"widths": (1.0,), "attack_steps": 1, "val_attack_samples": 32}
    config = tiny_config(epochs=30, lr=1e-9, patience=1, **small)
    trainer = Trainer(config, digits, tmp_path)
    console = Console(record=True, width=200, force_terminal=False)
    run_training(trainer, console)
    text = console.export_text()
    stopped = trainer.state.epoch
    assert f"stopped after epoch {stopped} of 30: 1 validation without a better score" in text
    assert "robust overfitting" not in text
    trainer = Trainer(config, digits, tmp_path, resume=True)
    _make_overfit(trainer)
    run_training(trainer, console)
    (line,) = [one for one in console.export_text().splitlines() if "overfitting" in one]
    best = (trainer.state.best_epoch or 0) + 1
    assert line.startswith("robust overfitting: validation RA fell from 60.0% (epoch 1) to 10.0%")
    assert line.endswith(f"kept is the checkpoint of epoch {best}")


def _make_overfit(trainer: Trainer) -> None:
    """Put a history into the run in which RA falls while the loss does."""
    template, metrics = trainer.state.metrics[0], []
    for epoch, robust in enumerate([0.6, 0.1, 0.1, 0.1]):
        points = [{**point, "robust_accuracy": robust} for point in template["validation"]]
        metrics.append({**template, "epoch": epoch, "loss": 2 - epoch / 4, "validation": points})
    trainer.state.metrics = metrics
    trainer.state.best_epoch = 0
