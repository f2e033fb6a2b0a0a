"""CIFAR-10 (Krizhevsky 2009), binary version: one label byte, then 32x32 red, green, blue."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from oat_edge.data.archive import read_members
from oat_edge.data.dataset import RawData, RawSplit
from oat_edge.data.fetch import RemoteFile, Source, describe_files, find_files
from oat_edge.errors import InputError

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
IMAGE_SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32

_FILES = (*TRAIN_FILES, TEST_FILE)
_MEMBERS = tuple(f"{FOLDER}/{name}" for name in _FILES)
SOURCE = Source(
    name="cifar10",
    remote=(
        RemoteFile(
            url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    layouts=(_MEMBERS, _FILES),
)


def load_raw(*, data_dir: Path | None = None, download: bool = False) -> RawData:
    """50,000 and 10,000 images (N, 3, 32, 32)."""
    paths = find_files(SOURCE, data_dir=data_dir, download=download)
    contents = read_members(paths, _MEMBERS)
    batches = [parse_batch(contents[name], name) for name in TRAIN_FILES]
    return RawData(
        name=SOURCE.name,
        train=RawSplit(
            images=np.concatenate([batch.images for batch in batches]),
            labels=np.concatenate([batch.labels for batch in batches]),
        ),
        test=parse_batch(contents[TEST_FILE], TEST_FILE),
        class_names=CLASS_NAMES,
        source=describe_files(SOURCE, paths),
    )


def parse_batch(data: bytes, name: str) -> RawSplit:
    """Images (N, 3, 32, 32) and labels (N,) of one file."""
    if not data or len(data) % RECORD:
        raise InputError(
            f"cifar10: {name} has {len(data)} bytes: expected a multiple of {RECORD}, fetch it "
            "again (the binary version, not the Python one)"
        )
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, RECORD)
    return RawSplit(images=records[:, 1:].reshape(-1, *IMAGE_SHAPE), labels=records[:, 0])
