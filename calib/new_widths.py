"""From a run to a run that has more widths: affines, statistics, judgement, files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oat_edge.calib.bn_affine import tune_affines
from oat_edge.calib.bn_statistics import Change, StatisticsConfig, estimate_statistics
from oat_edge.calib.width_error import Judge, WidthError
from oat_edge.config import TrainConfig
from oat_edge.data.splits import permutation
from oat_edge.errors import InputError
from oat_edge.files import exclusive_lock, point_latest, sha256_file, write_json
from oat_edge.network_spec import NetworkSpec

if TYPE_CHECKING:
    from oat_edge.data import Dataset
    from oat_edge.nn.network import OATSNetwork
    from oat_edge.train.checkpoint import Checkpoint

SCHEMA = "oat-edge/bn-calibration/1"
Say = Callable[..., object]  # (text, share of the step)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewWidths:
    """A network with widths that were not trained, and how good they are."""

    network: OATSNetwork
    """Its trained widths are bit for bit those of the source."""
    spec: NetworkSpec
    info: dict[str, Any]
    """Of the source, with a record of each new width under "calibrated"."""
    errors: tuple[WidthError, ...]
    """One per new width."""
    source: str
    """Name of the run it was made from."""
    source_sha256: str
    """Of that run's checkpoint."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; accuracies are shares in [0, 1]."""
        widths = {error.width: error.to_json() for error in self.errors}
        records = [r for r in self.info["calibrated"] if r["width"] in widths]
        return {
            "schema": SCHEMA,
            "source": {"run": self.source, "checkpoint_sha256": self.source_sha256},
            "widths": [record | widths[record["width"]] for record in records],
        }


def calibrate_widths(
    checkpoint: Checkpoint,
    dataset: Dataset,
    widths: tuple[float, ...],
    config: StatisticsConfig,
    *,
    num_attacked: int,
    device: str = "cpu",
    say: Say = lambda text, share=0.0: None,
) -> NewWidths:
    """Add `widths` to a trained network and measure them on the validation split.

    dataset: the one of training; the statistics come from its training split alone. Raises
    `InputError` for a width that is there or that has no trained width on either side.
    """
    import torch

    from oat_edge.nn.added_width import add_width, trained_neighbours

    neighbours = {width: trained_neighbours(checkpoint.spec, width) for width in widths}
    train = TrainConfig.from_json(checkpoint.info["train"])
    tune_lr = train.lr if config.tune_lr is None else config.tune_lr
    chosen = permutation(len(dataset.train), (config.seed,))[: config.samples]
    split = dataset.train.take(chosen)
    images = torch.from_numpy(split.images).to(device)
    labels = torch.from_numpy(split.labels).to(device)
    judge = Judge(dataset.val, train, num_attacked=num_attacked, seed=config.seed)
    network, spec = checkpoint.network.to(device), checkpoint.spec
    records, errors = [], []
    for width, between in neighbours.items():
        network, spec = add_width(network, spec, width)
        before = judge.standard(network, width)
        if config.tune_steps:
            step = f"width {width:g}: batch norms' affines, {config.tune_steps} steps"
            say(step)
            estimate_statistics(
                network, width, images, labels, train, dataclasses.replace(config, rounds=0)
            )
            tune_affines(
                network, width, images, labels, train,
                steps=config.tune_steps, lr=tune_lr, seed=config.seed, say=partial(say, step),
            )  # fmt: skip
        step = f"width {width:g}: statistics of {len(split)} training images"
        say(step)
        changes = estimate_statistics(
            network, width, images, labels, train, config, say=partial(say, step)
        )
        step = f"width {width:g}: accuracy beside widths {between[0]:g} and {between[1]:g}"
        say(step)
        error = judge.judge(network, width, between, before=before, say=partial(say, step))
        errors.append(error)
        record = _record(checkpoint, config, error, changes, len(split), split.sha256())
        records.append(record | {"tune_lr": tune_lr if config.tune_steps else None})
    earlier = checkpoint.info.get("calibrated", [])
    return NewWidths(
        network=network,
        spec=spec,
        info=checkpoint.info | {"calibrated": [*earlier, *records]},
        errors=tuple(errors),
        source=checkpoint.run,
        source_sha256=checkpoint.sha256,
    )


@contextmanager
def reserved(run_dir: Path) -> Iterator[None]:
    """Hold the place of a new run until it is written: minutes of work must not end in vain.

    Raises `InputError` if a run is there, or another command is making one. Nothing is left of the
    folder if nothing was written to it.
    """
    _check_free(run_dir)
    was_there = run_dir.exists()
    with exclusive_lock(run_dir, wait=False):
        _check_free(run_dir)  # another command may have finished a run here meanwhile
        try:
            yield
        finally:
            if not was_there and [path.name for path in run_dir.iterdir()] == [".lock"]:
                (run_dir / ".lock").unlink()
                run_dir.rmdir()


def save_run(result: NewWidths, run_dir: Path) -> str:
    """Write a run directory that can be exported, evaluated and benched, not resumed.

    run_dir: `reserved`. Returns the checkpoint's sha256.
    """
    from oat_edge.train.checkpoint import CHECKPOINT, save_checkpoint

    names = ("train", "data", "calibrated")
    write_json(run_dir / "config.json", {name: result.info[name] for name in names})
    state = result.network.state_dict()
    save_checkpoint(run_dir / CHECKPOINT, state, result.spec, result.info)
    point_latest(run_dir)
    return sha256_file(run_dir / CHECKPOINT)


def _check_free(run_dir: Path) -> None:
    for path in (run_dir, *run_dir.parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is no folder: name another --out")
    for name in ("checkpoint.safetensors", "train_state.pt"):
        if (run_dir / name).exists():
            raise InputError(f"{run_dir} already holds a run: name another --out")


def _record(
    checkpoint: Checkpoint,
    config: StatisticsConfig,
    error: WidthError,
    changes: list[Change],
    samples: int,
    images_sha256: str,
) -> dict[str, Any]:
    """What the checkpoint's header says about a new width."""
    kind, point = error.worst()
    return {
        "width": error.width,
        "neighbours": list(error.neighbours),
        "source": {"run": checkpoint.run, "checkpoint_sha256": checkpoint.sha256},
        "samples": samples,
        "images_sha256": images_sha256,
        "batch_size": config.batch_size,
        "rounds": config.rounds,
        "tune_steps": config.tune_steps,
        "seed": config.seed,
        "changes": [dataclasses.asdict(change) for change in changes],
        "shortfall": error.shortfall,
        "worst": {"accuracy": kind, "lambda": point.lam},
    }
