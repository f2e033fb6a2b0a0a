"""The files of one run: config.json, metrics.jsonl, checkpoint.safetensors, train_state.pt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oat_edge.config import TrainConfig
from oat_edge.errors import InputError
from oat_edge.files import exclusive_lock, point_latest, remove_temporaries, write_bytes, write_json
from oat_edge.network_spec import NetworkSpec
from oat_edge.train.checkpoint import CHECKPOINT, save_checkpoint
from oat_edge.train.overfitting import RobustOverfitting
from oat_edge.train.state import TRAIN_STATE, TrainState, save_state


class RunFiles:
    """Written by one process: the first of its run."""

    def __init__(
        self, run_dir: Path, config: TrainConfig, data: dict[str, Any], spec: NetworkSpec
    ) -> None:
        """data: the record of the data set."""
        self.run_dir, self.config, self.data, self.spec = run_dir, config, data, spec
        self._written: tuple[int, RobustOverfitting | None] | None = None

    @property
    def record(self) -> dict[str, Any]:
        """What was trained, and on what."""
        return {"train": self.config.to_json(), "data": self.data}

    @contextmanager
    def held(self, state: TrainState, *, new: bool) -> Iterator[None]:
        """Hold the directory; its files are up to the state."""
        with exclusive_lock(self.run_dir, wait=False):
            if new:
                check_new(self.run_dir)  # another command may have finished a run here meanwhile
            remove_temporaries(self.run_dir)
            if new:
                self.save(state)  # from here on the run can be resumed, whenever it is killed
            write_json(self.run_dir / "config.json", self.record)
            point_latest(self.run_dir)
            yield

    def save(self, state: TrainState) -> None:
        """Write train_state.pt."""
        save_state(self.run_dir / TRAIN_STATE, state, self.config, self.data)

    def write_results(self, state: TrainState, found: RobustOverfitting | None) -> None:
        """Bring metrics.jsonl and the checkpoint up to the state (a kill may fall between)."""
        lines = "".join(json.dumps(entry) + "\n" for entry in state.metrics)
        write_bytes(self.run_dir / "metrics.jsonl", lines.encode())
        if state.best_epoch is None or (state.best_epoch, found) == self._written:
            return
        info = self.record | {"epoch": state.best_epoch, "score": state.best_score}
        if found:
            info["robust_overfitting"] = found.to_json()
        save_checkpoint(self.run_dir / CHECKPOINT, state.best, self.spec, info)
        self._written = (state.best_epoch, found)


def check_new(run_dir: Path) -> None:
    """Raise `InputError` if the directory already holds a run."""
    if any((run_dir / name).exists() for name in (CHECKPOINT, TRAIN_STATE)):
        raise InputError(f"{run_dir} already holds a run: pass --resume, or another --out")
