"""STL-10 (Coates, Ng, Lee 2011), binary version: 96x96 RGB, every plane column by column."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from oat_edge.data.archive import read_members
from oat_edge.data.dataset import RawData, RawSplit
from oat_edge.data.fetch import RemoteFile, Source, describe_files, find_files
from oat_edge.errors import InputError

CLASS_NAMES = (
    "airplane",
    "bird",
    "car",
    "cat",
    "deer",
    "dog",
    "horse",
    "monkey",
    "ship",
    "truck",
)
FOLDER = "stl10_binary"
FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
IMAGE_SHAPE = (3, 96, 96)
IMAGE_BYTES = 3 * 96 * 96

_MEMBERS = tuple(f"{FOLDER}/{name}" for name in FILES)
SOURCE = Source(
    name="stl10",
    remote=(
        RemoteFile(
            url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            sha256="f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
        ),
    ),
    layouts=(_MEMBERS, FILES),
)


def load_raw(*, data_dir: Path | None = None, download: bool = False) -> RawData:
    """5,000 and 8,000 images (N, 3, 96, 96); the unlabeled ones and the folds are not used."""
    paths = find_files(SOURCE, data_dir=data_dir, download=download)
    contents = read_members(paths, _MEMBERS)
    train_x, train_y, test_x, test_y = (contents[name] for name in FILES)
    return RawData(
        name=SOURCE.name,
        train=parse_split(train_x, train_y, "train"),
        test=parse_split(test_x, test_y, "test"),
        class_names=CLASS_NAMES,
        source=describe_files(SOURCE, paths),
    )


def parse_split(images: bytes, labels: bytes, name: str) -> RawSplit:
    """Images (N, 3, 96, 96) and labels (N,) in 0 … 9 of `name`_X.bin and `name`_y.bin."""
    if not images or len(images) % IMAGE_BYTES:
        raise InputError(
            f"stl10: {name}_X.bin has {len(images)} bytes: expected a multiple of "
            f"{IMAGE_BYTES}, fetch it again"
        )
    numbers = np.frombuffer(labels, dtype=np.uint8).astype(np.int64)
    if np.any((numbers < 1) | (numbers > 10)):
        raise InputError(f"stl10: {name}_y.bin holds other values than 1 … 10: fetch it again")
    columns_first = np.frombuffer(images, dtype=np.uint8).reshape(-1, *IMAGE_SHAPE)
    return RawSplit(images=columns_first.transpose(0, 1, 3, 2), labels=numbers - 1)
