import hashlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oat_edge.data.splits import balanced_subset, permutation, stratified_split
from oat_edge.errors import InputError

class_sizes = st.lists(st.integers(2, 30), min_size=2, max_size=6)
keys = st.tuples(st.integers(0, 5), st.integers(0, 2**40))


def labels_of(sizes, key=(9,)):
    """Mixed labels with so many of each class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return labels[permutation(len(labels), key)]


def names_of(sizes):
    return tuple(f"class{k}" for k in range(len(sizes)))


@given(class_sizes, keys, st.floats(0.05, 0.9))
@example([2, 5], (0, 0), 0.9)
@example([2, 9], (0, 0), 0.05)
def test_split_is_a_partition_with_every_class_on_both_sides(sizes, key, share):
    labels = labels_of(sizes)
    rest, part = stratified_split(
        labels, share=share, key=key, class_names=names_of(sizes), part="validation"
    )
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(len(labels)))
    assert np.all(np.diff(rest) > 0) and np.all(np.diff(part) > 0)
    counts = np.bincount(labels[part], minlength=len(sizes))
    for size, count in zip(sizes, counts, strict=True):
        assert 1 <= count < size
        # The nearest whole number, unless one side would be left empty.
        assert abs(count - share * size) <= 0.5 or count in (1, size - 1)


def test_split_of_large_classes_is_the_exact_share():
    labels = labels_of([500] * 4)
    _, part = stratified_split(
        labels, share=0.1, key=(1, 0), class_names=tuple("abcd"), part="validation"
    )
    assert np.bincount(labels[part]).tolist() == [50] * 4


@given(st.integers(0, 1000))
def test_another_key_gives_another_split_and_the_same_key_the_same(seed):
    labels = labels_of([100, 100])
    split = {
        key: stratified_split(
            labels, share=0.1, key=(1, key), class_names=("a", "b"), part="validation"
        )[1].tolist()
        for key in (seed, seed + 1)
    }
    again = stratified_split(
        labels, share=0.1, key=(1, seed), class_names=("a", "b"), part="validation"
    )
    assert split[seed] == again[1].tolist() != split[seed + 1]


def test_a_class_of_one_is_named():
    with pytest.raises(InputError, match=r"'class1' has 1 training image.* test split"):
        stratified_split(
            np.array([0, 0, 1]), share=0.2, key=(0,), class_names=("class0", "class1"), part="test"
        )


@given(class_sizes, keys, st.data())
def test_subset_has_the_size_and_balanced_classes(sizes, key, data):
    labels = labels_of(sizes)
    size = data.draw(st.integers(len(sizes), len(labels)))
    chosen = balanced_subset(labels, size=size, key=key, num_classes=len(sizes))
    assert len(chosen) == size and np.all(np.diff(chosen) > 0)
    counts = np.bincount(labels[chosen], minlength=len(sizes))
    assert counts.min() >= 1
    # A class that has fewer than another by more than one has nothing left to give.
    short = counts < counts.max() - 1
    np.testing.assert_array_equal(counts[short], np.array(sizes)[short])


@settings(max_examples=20)
@given(class_sizes, keys)
def test_every_subset_lies_inside_the_next_larger_one(sizes, key):
    labels, smaller = labels_of(sizes), set()
    for size in range(len(sizes), len(labels) + 1):
        larger = balanced_subset(labels, size=size, key=key, num_classes=len(sizes))
        assert smaller <= set(larger.tolist())
        smaller = set(larger.tolist())
    assert smaller == set(range(len(labels)))


def test_subset_changes_with_the_seed():
    labels = labels_of([50, 50])
    subsets = [
        tuple(balanced_subset(labels, size=20, key=(2, seed), num_classes=2)) for seed in range(5)
    ]
    assert len(set(subsets)) == 5


def test_subset_of_impossible_size_says_what_is_possible():
    labels = labels_of([5, 6])
    with pytest.raises(InputError, match="has 11 samples"):
        balanced_subset(labels, size=12, key=(2, 0), num_classes=2)
    for size in (1, 0, -3):
        with pytest.raises(InputError, match="at least 2"):
            balanced_subset(labels, size=size, key=(2, 0), num_classes=2)


@given(st.integers(0, 200), keys)
def test_permutation_is_one(size, key):
    assert sorted(permutation(size, key).tolist()) == list(range(size))


def test_permutation_is_the_same_in_every_version_of_numpy():
    # Frozen: a change would silently change every test split that is made here.
    text = ",".join(map(str, permutation(1000, (1, 7)).tolist()))
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "69a342f7a6b898e4e1326818313b08ac1c1f39ad4361569674d42ac1dc4029c7"
    )
