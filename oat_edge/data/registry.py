"""From a name or a path to a validated, split and recorded `Dataset`."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any

from oat_edge.data.dataset import Dataset, RawData, Split
from oat_edge.data.splits import balanced_subset, stratified_split
from oat_edge.data.validate import validated
from oat_edge.errors import InputError

# name -> loader(data_dir: Path | None, download: bool) -> RawData
DATASETS = {
    "digits": "oat_edge.data.digits:load_raw",
    "fashion-mnist": "oat_edge.data.fashion_mnist:load_raw",
    "cifar10": "oat_edge.data.cifar10:load_raw",
    "svhn": "oat_edge.data.svhn:load_raw",
    "stl10": "oat_edge.data.stl10:load_raw",
}
# kind of path -> loader(path: Path) -> RawData
PATH_LOADERS = {
    "folder": "oat_edge.data.image_folder:load_raw",
    ".npz": "oat_edge.data.npz:load_raw",
}

TEST_SHARE = 0.2
VAL_SHARE = 0.1
# First elements of the keys of splits.permutation: one stream for each purpose. The test split's
# key has no seed, so that figures of runs with different seeds compare.
TEST_KEY, VAL_KEY, SUBSET_KEY = 0, 1, 2


def load(
    data: str,
    *,
    data_dir: Path | None = None,
    download: bool = False,
    train_samples: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load the data set called `data`, or the image folder or .npz file at that path.

    data_dir: where the files of a named data set are looked for first. download: fetch them if
    they are found nowhere. seed: chooses the validation split and, with `train_samples`, the
    class-balanced subset of the training split; never the test split.
    Raises `InputError` for anything that is not sound data.
    """
    if seed < 0:
        raise InputError(f"seed is {seed}: expected 0 or more")
    raw = _load_raw(data, data_dir=data_dir, download=download)
    train, test, class_names = validated(raw)
    if test is None:
        rest, part = stratified_split(
            train.labels, share=TEST_SHARE, key=(TEST_KEY,), class_names=class_names, part="test"
        )
        train, test = train.take(rest), train.take(part)
    rest, part = stratified_split(
        train.labels,
        share=VAL_SHARE,
        key=(VAL_KEY, seed),
        class_names=class_names,
        part="validation",
    )
    train, val = train.take(rest), train.take(part)
    if train_samples is not None:
        key = (SUBSET_KEY, seed)
        train = train.take(
            balanced_subset(train.labels, size=train_samples, key=key, num_classes=len(class_names))
        )
    splits = {"train": train, "val": val, "test": test}
    return Dataset(
        name=raw.name,
        **splits,
        class_names=class_names,
        record=_record(raw, splits, train_samples=train_samples, seed=seed),
    )


def _load_raw(data: str, *, data_dir: Path | None, download: bool) -> RawData:
    if data in DATASETS:
        if data_dir is not None and not data_dir.is_dir():
            raise InputError(f"data-dir is '{data_dir}': expected a folder that is there")
        raw: RawData = _resolve(DATASETS[data])(data_dir=data_dir, download=download)
        return raw
    path, kind = _path_kind(data)
    if kind not in PATH_LOADERS:
        raise InputError(_unknown(data, kind))
    raw = _resolve(PATH_LOADERS[kind])(path)
    return raw


def _path_kind(data: str) -> tuple[Path, str]:
    """The path that `data` may be, and "folder", ".npz", "file" or "" for nothing there."""
    try:
        path = Path(data).expanduser()
        # The empty string is the current folder to pathlib, and to users a mistake.
        if data and path.is_dir():
            return path, "folder"
        if path.is_file():
            return path, ".npz" if path.suffix == ".npz" else "file"
    # An unreadable parent, a name that is too long, an unknown ~user.
    except (OSError, RuntimeError, ValueError):
        pass
    return Path(), ""


def _resolve(dotted: str) -> Any:
    module, _, attribute = dotted.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _unknown(data: str, kind: str) -> str:
    close = difflib.get_close_matches(data.lower(), DATASETS, n=1)
    what = "is a file but not a .npz" if kind == "file" else "is no data set and no path"
    return (
        f"data {data!r:.200} {what}: expected one of {', '.join(DATASETS)}, an image folder "
        "or a .npz file" + (f" (did you mean '{close[0]}'?)" if close else "")
    )


def _record(
    raw: RawData, splits: dict[str, Split], *, train_samples: int | None, seed: int
) -> dict[str, Any]:
    """What a run writes down about its data; JSON values only."""
    return {
        "name": raw.name,
        "source": raw.source,
        "seed": seed,
        "train_samples": train_samples,
        "test_split": "made" if raw.test is None else "published",
        "splits": {
            name: {"samples": len(split), "sha256": split.sha256()}
            for name, split in splits.items()
        },
    }
