"""A user's image folder: train/ and test/ with one sub-folder per class, or the classes alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.data.dataset import RawData, RawSplit, UInt8
from oat_edge.errors import InputError
from oat_edge.files import sha256_file
from oat_edge.require import require

# (file, number of its class)
Sample = tuple[Path, int]


def load_raw(root: Path) -> RawData:
    """Images (N, 1, H, W) if all are grey, else (N, 3, H, W), in sorted order of their names.

    Hidden entries are ignored. With train/ and test/ nothing else at the top is looked at.
    Sizes are never changed and colours only from palettes and the like to RGB.
    """
    root = root.resolve()
    halves = [name for name in ("train", "test") if (root / name).is_dir()]
    if len(halves) == 1:
        missing = "test" if halves == ["train"] else "train"
        raise InputError(
            f"{root} has {halves[0]}/ but no {missing}/: expected both, or one folder per class"
        )
    train_root = root / "train" if halves else root
    class_names = tuple(folder.name for folder in _class_folders(train_root))
    train = _list_samples(train_root, class_names)
    test = _list_samples(root / "test", class_names) if halves else []
    images = _decode([path for path, _ in (*train, *test)])
    labels = np.array([label for _, label in (*train, *test)], dtype=np.int64)
    cut = len(train)
    return RawData(
        name=root.name,
        train=RawSplit(images=images[:cut], labels=labels[:cut]),
        test=RawSplit(images=images[cut:], labels=labels[cut:]) if halves else None,
        class_names=class_names,
        source=_describe(root, [path for path, _ in (*train, *test)]),
    )


def _entries(folder: Path) -> list[Path]:
    """Visible entries in an order that does not depend on the file system or the locale."""
    try:
        visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error}): check its permissions") from None
    return sorted(visible, key=lambda entry: entry.name)


def _class_folders(root: Path) -> list[Path]:
    folders = _entries(root)
    for entry in folders:
        if not entry.is_dir():
            raise InputError(
                f"{entry} is a file: expected only class folders in {root}, move it away"
            )
    if not folders:
        raise InputError(f"{root} is empty: expected one folder of images per class")
    return folders


def _list_samples(root: Path, class_names: Sequence[str]) -> list[Sample]:
    numbers = {name: number for number, name in enumerate(class_names)}
    samples: list[Sample] = []
    for folder in _class_folders(root):
        if folder.name not in numbers:
            raise InputError(f"{folder} is a class that train/ does not have: add it or remove it")
        files = _entries(folder)
        if not files:
            raise InputError(f"class folder {folder} is empty: add images or remove it")
        for file in files:
            if not file.is_file():
                raise InputError(f"{file} is not a file: expected only images in class folders")
        samples += [(file, numbers[folder.name]) for file in files]
    return samples


def _decode(paths: Sequence[Path]) -> UInt8:
    """(N, C, H, W) of images that all have one size and one mode."""
    first = _decode_one(paths[0])
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)
    for index, path in enumerate(paths):
        image = _decode_one(path)
        if image.shape != first.shape:
            raise InputError(
                f"{path} is {_size(image)}, but {paths[0]} is {_size(first)}: "
                "bring all images to one size and mode"
            )
        images[index] = image
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _decode_one(path: Path) -> UInt8:
    """(H, W, C) with C = 1 for a grey image and 3 for any other."""
    pil: Any = require("PIL.Image", purpose="reading an image folder")
    try:
        with pil.open(path) as image:
            # 16-bit and float images would be clipped without a word.
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{path} has more than 8 bits per channel: convert it to 8 bits")
            decoded = image if image.mode in ("L", "RGB") else image.convert("RGB")
            pixels: npt.NDArray[np.uint8] = np.asarray(decoded, dtype=np.uint8)
    except InputError:
        raise
    # Pillow's decoders let out whatever a damaged file makes them trip over.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read as an image ({reason:.120}): remove or replace it"
        ) from None
    return pixels.reshape(*pixels.shape[:2], -1)


def _size(image: UInt8) -> str:
    height, width, channels = image.shape
    return f"{width}x{height} {'L' if channels == 1 else 'RGB'}"


def _describe(root: Path, paths: Sequence[Path]) -> dict[str, Any]:
    """Path of the folder and one hash over the names and contents of all its images."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{sha256_file(path)}  {path.relative_to(root).as_posix()}\n".encode())
    return {"path": str(root), "num_files": len(paths), "sha256": digest.hexdigest()}
