"""Training and attacking the networks of a comparison, one by one; what is done is not repeated.

M images of the test split, N of them attacked, the same for every network
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oat_edge.errors import InputError
from oat_edge.evaluation.config import EvalConfig
from oat_edge.evaluation.meter import Progress, silent
from oat_edge.evaluation.outcome import Bool
from oat_edge.evaluation.pack_set import WORST
from oat_edge.evaluation.report import row_name
from oat_edge.operating_point import OperatingPoint
from oat_edge.reproduce.plan import Model
from oat_edge.reproduce.standard import right_on_all

if TYPE_CHECKING:
    from oat_edge.data import Dataset
    from oat_edge.train.loop import Trainer


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Right:
    """Which images one network classifies right at one operating point."""

    clean: Bool
    """(M,)."""
    attacked: Bool
    """(N,): clean and under every attack."""
    suspect: bool
    """A check for masked gradients was flagged."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """What one network came to."""

    model: Model
    points: Mapping[OperatingPoint, Right]
    """By operating point in the comparison."""
    facts: Mapping[str, Any]
    """JSON values: checkpoint, chosen epoch, time of training."""
    settings: Mapping[str, Any]
    """Of the evaluation, as its report has them."""


def train_model(
    model: Model,
    dataset: Dataset,
    run_dir: Path,
    *,
    train: Callable[[Trainer], object],
    device: str = "cpu",
) -> None:
    """Train a network, or go on with it; `train` is called if there is something left to do.

    Raises `InputError` if the run in `run_dir` has other settings.
    """
    from oat_edge.train.loop import Trainer
    from oat_edge.train.state import TRAIN_STATE

    resume = (run_dir / TRAIN_STATE).exists()
    if resume:
        check_same_settings(model, run_dir)
    trainer = Trainer(model.config, dataset, run_dir, device=device, resume=resume)
    if trainer.state.epoch < model.config.epochs:
        train(trainer)
    else:
        trainer.train()  # writes what a kill after the last epoch has left out


def check_same_settings(model: Model, run_dir: Path) -> None:
    """Raise `InputError` that names the first setting in which the run is another one."""
    from oat_edge.train.state import TRAIN_STATE, load_state

    _, saved, _ = load_state(run_dir / TRAIN_STATE)
    now, before = model.config.to_json(), saved.to_json()
    for name in {**before, **now}:
        if now.get(name) != before.get(name):
            raise InputError(
                f"{run_dir} was begun with {name} {before.get(name)}, now it is {now.get(name)}: "
                "give the same options as before, or another --out"
            )


def score_model(
    model: Model,
    dataset: Dataset,
    run_dir: Path,
    config: EvalConfig,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Scores:
    """Attack a trained network; finished parts of an earlier call are used again.

    Standard accuracy is that of the whole test split. Leaves eval.json and eval-samples.npz in
    the run, whose accuracies are all of the attacked images.
    """
    from oat_edge.evaluation.network import evaluate_network
    from oat_edge.train.checkpoint import load_checkpoint
    from oat_edge.train.state import TRAIN_STATE, load_state

    checkpoint = load_checkpoint(run_dir)
    evaluation = evaluate_network(
        checkpoint,
        config,
        dataset=dataset,
        widths=model.eval_widths,
        lambdas=model.config.lambdas,
        folder=run_dir,
        device=device,
        progress=progress,
    )
    report = evaluation.save(run_dir)
    rows = {row.point: row for row in report.rows}
    clean = right_on_all(checkpoint, dataset.test, rows, run_dir, device=device)
    points = {}
    for point, own in model.points.items():
        row = rows[own]
        outcome = evaluation.outcomes[row_name(row.artifact, own)]
        points[point] = Right(
            clean=clean[own],
            attacked=outcome.robust[WORST],
            suspect=row.status == "suspect",
        )
    state, _, _ = load_state(run_dir / TRAIN_STATE)
    facts = {
        "model": model.name,
        "group": model.group,
        "kind": model.kind,
        "seed": model.config.seed,
        "arch": model.config.arch,
        "checkpoint_sha256": checkpoint.sha256,
        "epoch": checkpoint.info["epoch"] + 1,
        "epochs": model.config.epochs,
        "training_images": len(dataset.train),
        "training_s": round(sum(entry["seconds"] for entry in state.metrics), 1),
        "attack_s": round(sum(sum(row.seconds.values()) for row in report.rows), 1),
    }
    return Scores(model=model, points=points, facts=facts, settings=report.settings)
