"""The checks that every data set passes before training starts, whatever it was read from."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.data.dataset import RawData, RawSplit, Split
from oat_edge.errors import InputError


def validated(raw: RawData) -> tuple[Split, Split | None, tuple[str, ...]]:
    """Train split, test split (None if there is none) and class names of sound data.

    Raises `InputError`, one line that says what was got, what was expected and what to do.
    """
    train = _checked_split(raw.train, f"{raw.name}: train")
    class_names = _class_names(raw, train)
    if raw.test is None:
        return train, None, class_names
    test = _checked_split(raw.test, f"{raw.name}: test")
    if test.images.shape[1:] != train.images.shape[1:]:
        raise InputError(
            f"{raw.name}: test images are {test.images.shape[1:]}, train images are "
            f"{train.images.shape[1:]} (C, H, W): bring them to one size"
        )
    if (largest := int(test.labels.max())) >= len(class_names):
        raise InputError(
            f"{raw.name}: test labels go up to {largest}, but the train split has "
            f"{len(class_names)} classes: remove the test images of other classes"
        )
    return train, test, class_names


def _checked_split(raw: RawSplit, what: str) -> Split:
    _check_images(raw.images, what)
    _check_labels(raw.labels, len(raw.images), what)
    return Split(
        images=np.ascontiguousarray(raw.images),
        labels=np.ascontiguousarray(raw.labels, dtype=np.int64),
    )


def _check_images(images: npt.NDArray[Any], what: str) -> None:
    if images.dtype != np.uint8:
        raise InputError(
            f"{what} images are {images.dtype}: expected uint8 in 0 … 255 "
            "(convert [0, 1] floats by round(255 x))"
        )
    if images.ndim != 4:
        raise InputError(f"{what} images have shape {images.shape}: expected (N, C, H, W)")
    if not len(images):
        raise InputError(f"{what} split is empty: expected at least one image")
    if images.shape[1] not in (1, 3):
        raise InputError(
            f"{what} images have {images.shape[1]} channels: expected 1 (grey) or 3 (RGB)"
        )
    if 0 in images.shape:
        raise InputError(f"{what} images have shape {images.shape}: expected H and W above 0")


def _check_labels(labels: npt.NDArray[Any], num_images: int, what: str) -> None:
    if labels.dtype.kind not in "iu":
        raise InputError(f"{what} labels are {labels.dtype}: expected integers 0 … K-1")
    if labels.ndim != 1:
        raise InputError(f"{what} labels have shape {labels.shape}: expected ({num_images},)")
    if len(labels) != num_images:
        raise InputError(
            f"{what} has {num_images} images and {len(labels)} labels: expected one label per image"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > np.iinfo(np.int64).max:
        raise InputError(
            f"{what} labels lie in {low} … {high}: expected 0 … K-1 (renumber the classes)"
        )


def _class_names(raw: RawData, train: Split) -> tuple[str, ...]:
    """Names of the classes, once it is sure that the train labels are exactly 0 … K-1."""
    present = np.unique(train.labels)
    names = raw.class_names
    # A wrong label may be huge: nothing of that size is ever made.
    num_classes = int(present[-1]) + 1 if names is None else len(names)
    if num_classes < 2:
        raise InputError(f"{raw.name}: there is only one class: expected 2 or more")
    if names is not None and int(present[-1]) >= num_classes:
        raise InputError(
            f"{raw.name}: train labels go up to {int(present[-1])}, but there are {num_classes} "
            f"class names: expected labels 0 … {num_classes - 1}"
        )
    if len(present) != num_classes:
        kept = set(present.tolist())
        empty = (k if names is None else names[k] for k in range(num_classes) if k not in kept)
        raise InputError(
            f"{raw.name}: no train image for {num_classes - len(present)} of {num_classes} "
            f"classes ({_first(empty)}): add images, or renumber the classes without them"
        )
    if names is None:
        return tuple(str(k) for k in range(num_classes))
    if len(set(names)) != len(names) or not all(names):
        raise InputError(
            f"{raw.name}: class names are {_first(names)}: expected different, non-empty names"
        )
    return names


def _first(items: Iterable[object], limit: int = 5) -> str:
    """The first few items as text."""
    few = [str(item) for item in islice(items, limit + 1)]
    return ", ".join(few[:limit]) + (", …" if len(few) > limit else "")
