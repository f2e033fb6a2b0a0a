"""What a data set is: before validation (`RawData`) and after it (`Dataset`).

N images, C channels, H/W pixels, K classes
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.errors import InputError

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """Images with their labels."""

    images: UInt8
    """(N, C, H, W), C-contiguous."""
    labels: Int64
    """(N,) in 0 … K-1."""

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or not images.flags.c_contiguous:
            raise InputError(
                f"images are {images.dtype}{images.shape}: expected contiguous uint8 (N, C, H, W)"
            )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise InputError(
                f"labels are {labels.dtype}{labels.shape}: expected int64 ({len(images)},)"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Int64) -> Split:
        """Copy of the samples at `indices`, in that order."""
        return Split(images=np.ascontiguousarray(self.images[indices]), labels=self.labels[indices])

    def sha256(self) -> str:
        """Fingerprint of shape, images and labels; equal on every machine."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(self.images.data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """Three splits that share image shape and classes."""

    name: str
    train: Split
    val: Split
    """Tenth of the published training split; chooses checkpoints."""
    test: Split
    """The same images whatever the seed."""
    class_names: tuple[str, ...]
    """One per class, in the order of the labels."""
    record: dict[str, Any]
    """JSON values: name, source, seed, size and fingerprint of every split."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RawSplit:
    """What a loader read, before any check; meant to be images (N, C, H, W) and labels (N,)."""

    images: npt.NDArray[Any]
    labels: npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RawData:
    """What a loader returns; `oat_edge.data.validate` decides whether it is sound."""

    name: str
    train: RawSplit
    test: RawSplit | None
    """None: no split is published, so a fixed fifth of `train` becomes the test split."""
    class_names: tuple[str, ...] | None
    """None: named by their numbers."""
    source: dict[str, Any]
    """JSON values for the record: where the bytes came from, with hashes."""
