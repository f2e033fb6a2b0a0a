"""A user's .npz file: x_train, y_train, x_test, y_test and, if given, class_names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.data.dataset import RawData, RawSplit
from oat_edge.errors import InputError
from oat_edge.files import sha256_file

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def load_raw(path: Path) -> RawData:
    """Images uint8 (N, H, W) or (N, H, W, C), labels integer (N,) or (N, 1)."""
    arrays = _read(path)
    names = arrays.get("class_names")
    return RawData(
        name=path.stem,
        train=_split(arrays, "train", path),
        test=_split(arrays, "test", path),
        class_names=None if names is None else _class_names(names, path),
        source={"files": [{"path": str(path.absolute()), "sha256": sha256_file(path)}]},
    )


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays by name; nothing is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in ARRAYS if name not in archive.files]
            if missing:
                raise InputError(
                    f"{path} has no {', '.join(missing)}: expected {', '.join(ARRAYS)} "
                    "and optionally class_names"
                )
            return {name: archive[name] for name in (*ARRAYS, "class_names") if name in archive}
    except InputError:
        raise
    # A damaged or hostile file makes zipfile, zlib and numpy raise all kinds of errors.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read ({reason:.120}): expected a file written by numpy.savez "
            "with plain arrays, not objects"
        ) from None


def _split(arrays: dict[str, npt.NDArray[Any]], name: str, path: Path) -> RawSplit:
    images, labels = arrays[f"x_{name}"], arrays[f"y_{name}"]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise InputError(
            f"{path}: x_{name} has shape {images.shape}, expected (N, H, W) or (N, H, W, C) "
            "with 1 or 3 channels: transpose it"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    channels_last = images[..., None] if images.ndim == 3 else images
    return RawSplit(images=channels_last.transpose(0, 3, 1, 2), labels=labels)


def _class_names(names: npt.NDArray[Any], path: Path) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind != "U":
        raise InputError(
            f"{path}: class_names is {names.dtype}{names.shape}, expected a row of strings"
        )
    return tuple(names.tolist())
