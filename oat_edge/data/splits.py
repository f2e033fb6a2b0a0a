"""Seeded, stratified parts of a split. Indices come back sorted, so the order of files is kept.

    N samples, K classes

Permutations are made from the raw stream of PCG64, which numpy guarantees; those of its
`Generator` may change between versions, and a test split must not.
"""

from __future__ import annotations

import numpy as np

from oat_edge.data.dataset import Int64
from oat_edge.errors import InputError


def stratified_split(
    labels: Int64, *, share: float, key: tuple[int, ...], class_names: tuple[str, ...], part: str
) -> tuple[Int64, Int64]:
    """Indices of the rest and of the part that takes `share` of every class.

    labels: (N,). Both sides get at least one sample of each class; `part` names the part in the
    error when a class is too small for that.
    """
    taken = []
    for k, members in enumerate(_shuffled_classes(labels, key, len(class_names))):
        if len(members) < 2:
            raise InputError(
                f"class '{class_names[k]}' has {len(members)} training image: splitting off "
                f"the {part} split needs 2 or more, add images of it"
            )
        size = min(max(round(share * len(members)), 1), len(members) - 1)
        taken.append(members[:size])
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.concatenate(taken)] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def balanced_subset(labels: Int64, *, size: int, key: tuple[int, ...], num_classes: int) -> Int64:
    """Indices of `size` samples, the classes as equal as their sizes allow, each at least once.

    With one key a smaller subset lies inside every larger one.
    """
    if size > len(labels):
        raise InputError(
            f"train_samples is {size}: the training split has {len(labels)} samples "
            "after validation was split off"
        )
    if size < num_classes:
        raise InputError(
            f"train_samples is {size}: expected at least {num_classes}, one for every class"
        )
    classes = _shuffled_classes(labels, key, num_classes)
    counts = np.array([len(members) for members in classes])
    level = _highest_level(counts, size)
    quota = np.minimum(counts, level)
    # What is left goes, one each, to classes that have more, in a seeded order.
    order = permutation(num_classes, (*key, num_classes))
    larger = order[counts[order] > level]
    quota[larger[: size - int(quota.sum())]] += 1
    parts = [members[:n] for members, n in zip(classes, quota.tolist(), strict=True)]
    return np.sort(np.concatenate(parts))


def permutation(size: int, key: tuple[int, ...]) -> Int64:
    """Permutation of 0 … size-1 that is a function of `key` alone (non-negative integers)."""
    raw = np.random.PCG64(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(raw, kind="stable").astype(np.int64)


def _shuffled_classes(labels: Int64, key: tuple[int, ...], num_classes: int) -> list[Int64]:
    """Per class the indices of its samples, in an order given by `key` and the class."""
    members = [np.flatnonzero(labels == k) for k in range(num_classes)]
    return [m[permutation(len(m), (*key, k))] for k, m in enumerate(members)]


def _highest_level(counts: Int64, size: int) -> int:
    """Largest n such that n samples of every class (or all it has) do not exceed `size`."""
    low, high = 0, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(counts, middle).sum()) <= size:
            low = middle
        else:
            high = middle - 1
    return low
