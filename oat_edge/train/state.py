"""train_state.pt: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oat_edge.config import TrainConfig
from oat_edge.errors import InputError
from oat_edge.files import write_bytes
from oat_edge.train.distributed import ALONE, Ranks

TRAIN_STATE = "train_state.pt"
FORMAT = "oat-edge/train-state/1"


@dataclass(slots=True)
class TrainState:
    """A place in training: `step` optimiser steps of `epoch` are done (both from 0)."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    """Of the present epoch's steps."""
    best_score: float | None = None
    best_epoch: int | None = None
    network: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    """State dict of the best network so far."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """State dict of the averaged network, if there is one."""
    averaged: int = 0
    """How many states that average has taken in."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """One entry per finished epoch, the lines of metrics.jsonl."""


def save_state(path: Path, state: TrainState, config: TrainConfig, data: dict[str, Any]) -> None:
    """Write atomically; `data` is the record of the data set, checked on resume."""
    texts = {"config": config.to_json(), "data": data, "metrics": state.metrics}
    content = {name: getattr(state, name) for name in TrainState.__dataclass_fields__}
    content |= {name: json.dumps(value) for name, value in texts.items()}
    buffer = io.BytesIO()  # torch's own file writer reports a full disk as a bug
    torch.save({"format": FORMAT, **content}, buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path, ranks: Ranks = ALONE) -> tuple[TrainState, TrainConfig, dict[str, Any]]:
    """Read what `save_state` wrote, without unpickling code; damage raises `InputError`.

    Of several processes the first one reads: the others may be on machines without the file.
    """
    data = ranks.from_first(lambda: _read(path))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # torch.load does not look at the checksums; a flipped bit must not train on.
            if (broken := archive.testzip()) is not None:
                raise InputError(f"{path} is damaged (checksum of {broken}): train again")
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise InputError(f"{path} is not a training state of this version: train again")
        config = TrainConfig.from_json(json.loads(content.pop("config")))
        record = json.loads(content.pop("data"))
        content["metrics"] = json.loads(content["metrics"])
        return TrainState(**content), config, record
    except InputError:
        raise
    except Exception as error:  # torch.load raises whatever the damage makes its parser hit
        raise _unreadable(path, error) from None


def _read(path: Path) -> bytes:
    if not path.is_file():
        if (path.parent / "checkpoint.safetensors").exists():
            raise InputError(
                f"there is no training state at {path}: this run is a copy, or was made by "
                "`calibrate bn`; resume the run it comes from"
            )
        raise InputError(f"there is nothing to resume at {path}: start with `oat-edge train`")
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{path} cannot be read ({reason}): train again")
