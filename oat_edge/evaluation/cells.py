"""Finished parts of an evaluation on disk: a killed one continues where it stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.evaluation.pack import UNREADABLE
from oat_edge.files import atomic_path, remove_temporaries, write_json

Arrays = dict[str, npt.NDArray[Any]]
Facts = dict[str, Any]
META = "meta"
# Counts up when what a cell means changes, attacks and their settings included.
CELLS_FORMAT = 1


class CellStore:
    """One folder of cells for everything that decides their content.

    key: JSON values, e.g. checkpoint, ε, images and attack settings; another key, another
    folder. Two processes may write one folder: a cell is written whole, and equal keys give
    equal cells.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        text = json.dumps(key, sort_keys=True, ensure_ascii=False)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._key = key

    def load(self, name: str) -> tuple[Arrays, Facts] | None:
        """Arrays and facts of a cell; None if it is not there or not whole."""
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            return arrays, json.loads(arrays.pop(META).tobytes())
        except UNREADABLE:
            return None

    def save(self, name: str, arrays: Arrays, facts: Facts) -> None:
        """Write a cell atomically. facts: JSON values."""
        if not self.folder.exists():
            write_json(self.folder / "key.json", self._key)
        meta = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
        with atomic_path(self.folder / f"{name}.npz") as temporary:
            np.savez_compressed(temporary, **{**arrays, META: meta})  # type: ignore[arg-type]

    def clear(self) -> None:
        """Forget every cell of this key, and what a killed writer left."""
        if self.folder.is_dir():
            remove_temporaries(self.folder)
            for path in self.folder.glob("*.npz"):
                path.unlink(missing_ok=True)
