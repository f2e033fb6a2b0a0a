"""What does each option of training cost, and what does it gain?  Rows are changes of a recipe.

Every row is trained with every seed from the data set's plain recipe, on one thread, and the
checkpoint that the run kept is evaluated on test images: SA, and RA under PGD-20 (one start), per λ
as the mean over the widths. The cost of a step is measured apart, all options taking turns.

    python -m benchmarks.train_options --data digits --epochs 12 --seeds 1 [--only 'plain; distill']

A (row, seed) that --runs already holds is not trained again: a long table can be made in parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import console, interleaved, ratio, save
from oat_edge.attacks.stages import pgd20, still_right
from oat_edge.config import TrainConfig
from oat_edge.data import Dataset, load
from oat_edge.data.splits import permutation
from oat_edge.files import write_json
from oat_edge.nn.fold import fold
from oat_edge.reproduce.settings import parse_settings
from oat_edge.train.checkpoint import load_checkpoint
from oat_edge.train.loop import Trainer
from oat_edge.train.recipes import recipe

PLAIN = "plain"
# Row -> changes of `TrainConfig`.
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "distill": {"distill": True},
    "sandwich 1": {"sandwich": 1},
    "sandwich 1, distill": {"sandwich": 1, "distill": True},
    "share-attack widest": {"share_attack": "widest"},
    "share-attack random": {"share_attack": "random"},
    "n-fgsm": {"attack": "n-fgsm"},
    "trades, β 6": {"loss": "trades"},
    "trades, β 2": {"loss": "trades", "trades_beta": 2.0},
    "label-smoothing 0.1": {"label_smoothing": 0.1},
    "awp 0.005": {"awp_gamma": 0.005},
    "ema 0.99": {"ema": 0.99},
    "swa 0.75": {"swa_start": 0.75},
    "heads per width": {"heads": "per-width"},
    "clean pass of all": {"clean_images": "all"},
    "heads, ema": {"heads": "per-width", "ema": 0.999},
    "clean pass, heads, ema (default)": {"clean_images": "all", "heads": "per-width", "ema": 0.999},
    "trades, heads per width": {"loss": "trades", "heads": "per-width"},
    "trades, heads, ema": {"loss": "trades", "heads": "per-width", "ema": 0.99},
    "table": {"conditioning": "table"},
    "single-bn": {"conditioning": "single-bn"},
    "λ continuous": {"lambda_sampling": "continuous"},
    "bf16": {"amp": "bf16"},
}
Grid = list[dict[str, float]]


def main() -> None:
    """Train what is missing, evaluate, measure the steps, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--arch")
    parser.add_argument("--train-samples", type=int)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="of all rows, as `oat-edge reproduce` takes it")  # fmt: skip
    parser.add_argument("--images", type=int, default=300, help="test images per operating point")
    parser.add_argument("--rounds", type=int, default=9, help="of timing; 0 measures no cost")
    parser.add_argument("--only", default=";".join(OPTIONS), metavar="'ROW; ROW'")
    parser.add_argument("--runs", type=Path, help="where runs are kept; default: nowhere")
    parser.add_argument("--name", help="of the results file; default: train-options-DATA")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row.strip() for row in arguments.only.split(";")]
    given = {"arch": arguments.arch, "train_samples": arguments.train_samples}
    base = dataclasses.replace(
        recipe(arguments.data, "plain"),
        epochs=arguments.epochs,
        **{name: value for name, value in given.items() if value is not None},
        **parse_settings(arguments.set),
    )
    with tempfile.TemporaryDirectory() as temporary:
        runs = arguments.runs or Path(temporary)
        found: dict[str, list[Grid]] = {row: [] for row in rows}
        for seed in range(arguments.seeds):
            for row in rows:
                config = dataclasses.replace(base, seed=seed, **OPTIONS[row])
                dataset = _load(config, arguments.data_dir)
                grid = run_of(config, dataset, runs / f"{row}-{seed}", arguments.images)
                found[row].append(grid)
                console.print(f"{row}, seed {seed}: score {score(grid):.4f}", markup=False)
        cost = {}
        if arguments.rounds:
            configs = {row: dataclasses.replace(base, **OPTIONS[row]) for row in rows}
            dataset = _load(base, arguments.data_dir)
            cost = step_cost(configs, dataset, arguments.rounds)
    for line in table(found, cost):
        print(line)
    value = {name: v.name if isinstance(v, Path) else v for name, v in vars(arguments).items()}
    name = arguments.name or f"train-options-{arguments.data}"
    save(name, {"arguments": value, "recipe": base.to_json(), "cost": cost, "grids": found})


def run_of(config: TrainConfig, dataset: Dataset, run_dir: Path, num_images: int) -> Grid:
    """Train, unless it was; accuracies of the kept checkpoint at every operating point."""
    file = run_dir / f"accuracy-{num_images}.json"
    # Refuses a run that was trained with other settings.
    trainer = Trainer(config, dataset, run_dir, resume=(run_dir / "train_state.pt").exists())
    if not file.exists():
        trainer.train()
        write_json(file, {"grid": evaluate(run_dir, dataset, num_images)})
    grid: Grid = json.loads(file.read_text())["grid"]
    return grid


def evaluate(run_dir: Path, dataset: Dataset, num_images: int) -> Grid:
    """SA and RA on a seeded choice of test images, the same for every run."""
    network = load_checkpoint(run_dir).network
    few = permutation(len(dataset.test), (0,))[:num_images]
    x = torch.from_numpy(dataset.test.images[few]).float() / 255
    y = torch.from_numpy(dataset.test.labels[few])
    eps, grid = load_checkpoint(run_dir).spec.eps, []
    for width in network.widths:
        folded = fold(network, width)
        for lam in network.knots:
            logits = folded.at(torch.tensor([lam]))
            attacked = pgd20(logits, x, y, eps=eps, seed=0, restarts=1).right
            right = still_right(logits, x, y)
            shares = right.float().mean().item(), (attacked & right).float().mean().item()
            grid.append({"width": width, "lambda": lam, "sa": shares[0], "ra": shares[1]})
    return grid


def score(grid: Grid) -> float:
    """As `oat_edge.train.validate.grid_score`, on test images."""
    return statistics.fmean((1 - p["lambda"]) * p["sa"] + p["lambda"] * p["ra"] for p in grid)


def step_cost(
    configs: dict[str, TrainConfig], dataset: Dataset, rounds: int
) -> dict[str, dict[str, Any]]:
    """Time of a step, averaging included, as a ratio to the plain one's."""
    with tempfile.TemporaryDirectory() as folder:
        steps = {}
        for number, (row, config) in enumerate(configs.items()):
            trainer = Trainer(config, dataset, Path(folder) / str(number))
            steps[row] = lambda t=trainer: t.train_step(0, 0)
        samples = interleaved(steps, rounds=rounds)
    first = next(iter(steps))
    return {row: ratio(samples, row, first, calls=1) for row in steps if row != first}


def table(found: dict[str, list[Grid]], cost: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown: SA / RA in % per λ, mean over widths and seeds (± standard deviation of seeds)."""
    lambdas = sorted({point["lambda"] for point in next(iter(found.values()))[0]})
    lines = ["| | step | " + " | ".join(f"λ={lam:g}" for lam in lambdas) + " | score |"]
    lines.append("|" + "---|" * (len(lambdas) + 3))
    for row, grids in found.items():
        cells = [row, f"{cost[row]['ratio']:.2f}" if row in cost else "1"]
        for lam in lambdas:
            cells.append(" / ".join(_mean(grids, lam, key) for key in ("sa", "ra")))
        cells.append(_spread([100 * score(grid) for grid in grids]))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _mean(grids: list[Grid], lam: float, key: str) -> str:
    return _spread(
        [100 * statistics.fmean(p[key] for p in grid if p["lambda"] == lam) for grid in grids]
    )


def _spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def _load(config: TrainConfig, data_dir: Path | None) -> Dataset:
    return load(
        config.data, data_dir=data_dir, train_samples=config.train_samples, seed=config.seed
    )


if __name__ == "__main__":
    main()
