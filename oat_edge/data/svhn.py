"""SVHN, cropped digits (Netzer et al. 2011): 32x32 RGB, in MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from oat_edge.data.dataset import RawData, RawSplit
from oat_edge.data.fetch import RemoteFile, Source, describe_files, find_files
from oat_edge.data.mat5 import read_mat5
from oat_edge.errors import InputError

_URL = "http://ufldl.stanford.edu/housenumbers/"
SOURCE = Source(
    name="svhn",
    remote=(
        RemoteFile(
            url=_URL + "train_32x32.mat",
            sha256="435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
        RemoteFile(
            url=_URL + "test_32x32.mat",
            sha256="cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
    ),
)


def load_raw(*, data_dir: Path | None = None, download: bool = False) -> RawData:
    """73,257 and 26,032 images (N, 3, 32, 32); the `extra` images are not used."""
    paths = find_files(SOURCE, data_dir=data_dir, download=download)
    train, test = (read_mat(path) for path in paths)
    return RawData(
        name=SOURCE.name,
        train=train,
        test=test,
        class_names=tuple("0123456789"),
        source=describe_files(SOURCE, paths),
    )


def read_mat(path: Path) -> RawSplit:
    """Images (N, 3, 32, 32) and labels (N,) from `X` (32, 32, 3, N) and `y` (N, 1)."""
    content = read_mat5(path)
    if not {"X", "y"} <= set(content):
        raise InputError(f"{path} holds {sorted(content)}: expected X and y, fetch it again")
    images, labels = content["X"], content["y"]
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8:
        raise InputError(
            f"{path}: X is {images.dtype}{images.shape}, expected uint8 (32, 32, 3, N): "
            "fetch the cropped digits"
        )
    if np.any((labels < 1) | (labels > 10)):
        raise InputError(f"{path}: y holds other values than 1 … 10: fetch it again")
    # Label 10 stands for the digit 0.
    return RawSplit(
        images=images.transpose(3, 2, 0, 1), labels=labels.reshape(-1).astype(np.int64) % 10
    )
