"""The training loop: epochs, validation, files, resume, and a clean stop at any step.

Every step draws from its own random stream (seed, epoch, step), and the whole state is written
atomically. A run that was killed anywhere and resumed ends, on a CPU, bit for bit as one that
was not.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from oat_edge.config import TrainConfig
from oat_edge.data import Dataset
from oat_edge.errors import InputError, OatEdgeError
from oat_edge.nn.fold import fold
from oat_edge.nn.network import OATSNetwork
from oat_edge.nn.zoo import build_network
from oat_edge.train.averaging import Average
from oat_edge.train.batches import Batches
from oat_edge.train.distributed import ALONE, Ranks
from oat_edge.train.overfitting import RobustOverfitting, robust_overfitting
from oat_edge.train.precision import DTYPES
from oat_edge.train.run_files import RunFiles, check_new
from oat_edge.train.schedule import averages_after, rate_at
from oat_edge.train.state import TRAIN_STATE, TrainState, load_state
from oat_edge.train.step import OATSStep, StepOptions
from oat_edge.train.validate import PointAccuracy, grid_score, validate

SAVE_EVERY_S = 60.0
VALIDATION_STEPS = 7
"""At least; with 2.5 ε / steps (Madry et al. 2018) they cross any ball."""


class Interrupted(OatEdgeError):
    """Training was asked to stop and has saved its state."""

    exit_code = 130


class Progress(Protocol):
    """What a user interface may want to know while training runs."""

    def on_step(self, epoch: int, step: int, loss: float, images_per_s: float) -> None:
        """After a step; both count from 0."""

    def on_validation(self, epoch: int, grid: list[PointAccuracy], score: float) -> None:
        """After a validation."""


class Trainer:
    """One run in one directory.

    Opens `run_dir` new, or with resume=True at the place where it stopped. Raises `InputError`
    if the directory already holds a run (or holds none to resume), or if the data has changed.
    Of several processes (`ranks`) the first one alone reads and writes files; the state of a run
    does not depend on how many there are.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        run_dir: Path,
        *,
        device: str = "cpu",
        resume: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.dataset, self.run_dir = config, dataset, run_dir
        self.ranks = ranks
        ranks.check_same("settings", config.to_json())
        ranks.check_same("data", dataset.record["splits"])
        self.state = TrainState()
        self._resumed = resume
        if resume:
            self.state, saved, data = load_state(run_dir / TRAIN_STATE, ranks)
            if saved != config:
                raise InputError(f"{run_dir} was trained with other settings: resume with its own")
            # The images themselves; they may lie in another folder by now.
            if data.get("splits") != dataset.record["splits"]:
                raise InputError(f"the data of {run_dir} has changed since it was trained")
        elif ranks.first:
            check_new(run_dir)
        self.spec = config.network_spec(dataset.class_names, dataset.image_shape)
        self.files = RunFiles(run_dir, config, dataset.record, self.spec)
        self.device = torch.device(device)
        self.batches = Batches(config, dataset, self.device, num_ranks=ranks.size)
        self.batch_size, self.steps_per_epoch = self.batches.size, self.batches.per_epoch
        self._build()

    def _build(self) -> None:
        config = self.config
        mean, std = self.batches.channel_statistics()
        generator = torch.Generator().manual_seed(config.seed)
        network = build_network(self.spec, mean=mean, std=std, generator=generator)
        self.network: OATSNetwork = network.to(  # type: ignore[call-overload]
            self.device, memory_format=torch.channels_last
        )
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        if self.state.network:
            self.network.load_state_dict(self.state.network)
            self.optimizer.load_state_dict(self.state.optimizer)
        # Machines of different kinds may have drawn them with different last bits.
        self.ranks.copy_first(list(self.network.state_dict().values()))
        self.step = OATSStep(
            self.network,
            self.optimizer,
            eps=config.eps,
            attack_steps=config.attack_steps,
            attack_alpha=config.attack_alpha,
            options=StepOptions.of(config),
            ranks=self.ranks,
            compute_dtype=DTYPES[config.amp],
            compiled=config.compile == "on",
        )
        self.average: Average | None = None
        if config.ema or config.swa_start is not None:
            self.average = Average(self.network, decay=config.ema or None)
            if self.state.average:
                self.average.network.load_state_dict(self.state.average)
                self.average.count = self.state.averaged

    @property
    def overfitting(self) -> RobustOverfitting | None:
        """Robust overfitting, as the validations so far show it."""
        num_attacked = min(self.config.val_attack_samples, len(self.dataset.val))
        return robust_overfitting(self.state.metrics, num_attacked)

    @property
    def out_of_patience(self) -> bool:
        """Whether `patience` validations in a row have brought no better score."""
        if not self.config.patience or self.state.best_epoch is None:
            return False
        if self.config.swa_start is not None and not averages_after(self.config, self.state.epoch):
            return False  # what is waited for has not begun
        since = [m for m in self.state.metrics if m["epoch"] > self.state.best_epoch]
        return sum("score" in m for m in since) >= self.config.patience

    def train(
        self,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[PointAccuracy]:
        """Train to the end; returns the validation grid of the best epoch.

        should_stop is asked after every step; when true on any process, the state is saved and
        `Interrupted` raised on all. Files: config.json, metrics.jsonl, checkpoint.safetensors,
        train_state.pt.
        """
        with self._opened():
            while self.state.epoch < self.config.epochs and not self.out_of_patience:
                self._train_epoch(progress, should_stop)
        best = next(m for m in self.state.metrics if m["epoch"] == self.state.best_epoch)
        return [PointAccuracy.from_json(point) for point in best["validation"]]

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Hold the run directory, its files up to the state."""
        if not self.ranks.first:
            yield
            return
        self._take_state()
        with self.files.held(self.state, new=not self._resumed):
            self._write_results()
            yield

    def _train_epoch(self, progress: Progress | None, should_stop: Callable[[], bool]) -> None:
        state, epoch = self.state, self.state.epoch
        started, first_step, last_save = time.perf_counter(), state.step, time.monotonic()

        def speed(steps: int) -> float:
            return steps * self.batch_size / (time.perf_counter() - started)

        while state.step < self.steps_per_epoch:
            loss = self.train_step(epoch, state.step)
            state.loss_sum += loss
            state.step += 1
            if progress:
                progress.on_step(epoch, state.step - 1, loss, speed(state.step - first_step))
            stop = self.ranks.any(should_stop())
            if stop or time.monotonic() - last_save > SAVE_EVERY_S:
                self._save()
                last_save = time.monotonic()
            if stop:
                self.ranks.wait()  # the first process has saved
                raise Interrupted(
                    f"stopped in epoch {epoch + 1} of {self.config.epochs}; go on with: "
                    f"oat-edge train --resume --out {shlex.quote(str(self.run_dir))}"
                )
        if self.average and averages_after(self.config, epoch + 1):
            self.average.update(self.network)
        entry: dict[str, Any] = {
            "epoch": epoch,
            "loss": state.loss_sum / self.steps_per_epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            # Of the steps since the last resume; 0 if the stop fell on the end of the epoch.
            "images_per_s": round(speed(state.step - first_step), 1),
            "seconds": round(time.perf_counter() - started, 3),
        }
        if (epoch + 1) % self.config.val_every == 0 or epoch + 1 == self.config.epochs:
            entry |= self._validate(epoch, progress)
        state.metrics.append(entry)
        if (found := self.overfitting) and found.epoch == epoch:
            entry["robust_overfitting"] = found.to_json()
        state.epoch, state.step, state.loss_sum = epoch + 1, 0, 0.0
        self._save()
        self._write_results()

    def train_step(self, epoch: int, step: int) -> float:
        """Train on the batch of this step (both count from 0); returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.config, epoch, step, self.steps_per_epoch)
        loss = self.step(*self.batches.draw(epoch, step)).item()
        if not math.isfinite(loss):
            raise InputError(
                f"training diverged: the loss is {loss} in epoch {epoch + 1}, step {step + 1}; "
                f"try a lower --lr than {self.config.lr:g}"
            )
        if self.average and self.config.ema:
            self.average.update(self.network)
        return loss

    def _chosen_network(self) -> OATSNetwork:
        """What is validated and saved: the average, once there is one."""
        if self.average is None or not self.average.count:
            return self.network
        if self.config.swa_start is not None:
            self.average.estimate_statistics(self.batches.images, self.batches.labels, self.config)
        return self.average.network

    def _validation_attack(self) -> dict[str, Any]:
        """Training's own, but no weaker than the usual: a network can learn to fool few steps, and
        by them its collapse would look like its best epoch."""
        steps, eps = self.config.attack_steps, self.config.eps
        if steps >= VALIDATION_STEPS:
            return {"attack_steps": steps, "attack_alpha": self.step.attack_alpha}
        return {"attack_steps": VALIDATION_STEPS, "attack_alpha": 2.5 * eps / VALIDATION_STEPS}

    def _validate(self, epoch: int, progress: Progress | None) -> dict[str, Any]:
        network = self._chosen_network()
        val = self.dataset.val
        grid = validate(
            # In the precision that is exported, whatever the step's is.
            {width: fold(network, width) for width in network.widths},
            torch.from_numpy(val.images).to(self.device),
            torch.from_numpy(val.labels).to(self.device),
            eps=self.config.eps,
            **self._validation_attack(),
            num_attacked=self.config.val_attack_samples,
            seed=self.config.seed,
            ranks=self.ranks,
        )
        score = grid_score(grid)
        if self.state.best_score is None or score > self.state.best_score:
            self.state.best_score, self.state.best_epoch = score, epoch
            self.state.best = _copy(network.state_dict())
        if progress:
            progress.on_validation(epoch, grid, score)
        return {"score": score, "validation": [point.to_json() for point in grid]}

    def _save(self) -> None:
        if self.ranks.first:
            self._take_state()
            self.files.save(self.state)

    def _take_state(self) -> None:
        self.state.network = self.network.state_dict()
        self.state.optimizer = self.optimizer.state_dict()
        if self.average:
            self.state.average = self.average.network.state_dict()
            self.state.averaged = self.average.count

    def _write_results(self) -> None:
        if self.ranks.first:
            self.files.write_results(self.state, self.overfitting)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
