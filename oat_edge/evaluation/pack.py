"""Attack packs: adversarial images made white-box, replayed on engines that have no gradients.

    N images, L lambdas, C channels, H/W pixels

A pack belongs to one width of one checkpoint. Its images lie on the 8-bit grid that a camera or
a PNG can hold, and inside the ε-ball in exact integer arithmetic.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.errors import InputError
from oat_edge.files import atomic_path

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

# What numpy, zipfile and zlib raise on a damaged .npz (RuntimeError: "is encrypted").
UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackPack:
    """Clean images, labels, and one adversarial version of each per λ."""

    attack: str
    """Name such as "pgd20"."""
    width: float
    lambdas: tuple[float, ...]
    eps: float
    checkpoint_sha256: str
    settings: dict[str, Any] = field(default_factory=dict)
    """The attack's own settings (steps, alpha, seed, …)."""
    indices: Int64
    """(N,) places of the images in the test split."""
    labels: Int64
    """(N,)"""
    images: UInt8
    """(N, C, H, W)"""
    adversarial: UInt8
    """(L, N, C, H, W)"""

    def __post_init__(self) -> None:
        expected = (len(self.lambdas), *self.images.shape)
        if self.images.dtype != np.uint8 or self.adversarial.dtype != np.uint8:
            raise InputError("attack pack: images are not uint8")
        if self.images.ndim != 4 or not len(self.images) or self.adversarial.shape != expected:
            raise InputError(
                f"attack pack: images {self.images.shape}, adversarial "
                f"{self.adversarial.shape}, expected {expected}"
            )
        if self.labels.shape != self.indices.shape or self.labels.shape != self.images.shape[:1]:
            raise InputError("attack pack: labels and indices do not fit the images")
        distance = np.abs(self.adversarial.astype(np.int16) - self.images.astype(np.int16))
        if distance.max(initial=0) > levels(self.eps):
            raise InputError(
                f"attack pack: an image lies {distance.max()} levels from its original, "
                f"eps allows {levels(self.eps)}"
            )

    def save(self, path: Path) -> None:
        """Write a compressed .npz atomically."""
        meta = {
            "attack": self.attack,
            "width": self.width,
            "lambdas": self.lambdas,
            "eps": self.eps,
            "checkpoint_sha256": self.checkpoint_sha256,
            "settings": self.settings,
        }
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary,
                meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8),
                indices=self.indices,
                labels=self.labels,
                images=self.images,
                adversarial=self.adversarial,
            )

    @classmethod
    def load(cls, path: Path) -> AttackPack:
        """Read what `save` wrote; never unpickles. Damage raises `InputError`."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            meta = json.loads(arrays.pop("meta").tobytes())
            meta["lambdas"] = tuple(meta["lambdas"])
            return cls(**meta, **arrays)
        except InputError:
            raise
        except UNREADABLE as error:
            raise InputError(f"attack pack {path} cannot be read ({error}): export again") from None


def levels(eps: float) -> int:
    """How many 8-bit levels fit into `eps`: 8/255 gives 8 (the float error of /255 is forgiven)."""
    return math.floor(eps * 255 + 1e-6)


def chosen_indices(num_test: int, num: int, seed: int) -> Int64:
    """Places of the attacked images, growing: a seeded choice, all if there are fewer than `num`.

    With one seed a smaller choice lies inside every larger one, so widths and attacks compare.
    """
    order = np.random.default_rng(seed).permutation(num_test)
    return np.sort(order[:num]).astype(np.int64)
