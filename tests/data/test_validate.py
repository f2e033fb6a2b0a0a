import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.data.dataset import RawData, RawSplit, Split
from oat_edge.data.validate import validated
from oat_edge.errors import InputError


def raw_data(**changes):
    train = RawSplit(images=np.zeros((6, 1, 4, 5), np.uint8), labels=np.array([0, 1, 2, 0, 1, 2]))
    test = RawSplit(images=np.ones((2, 1, 4, 5), np.uint8), labels=np.array([2, 0], np.int16))
    raw = RawData(name="toy", train=train, test=test, class_names=("a", "b", "c"), source={})
    return dataclasses.replace(raw, **changes)


def split(images=None, labels=None):
    images = np.zeros((6, 1, 4, 5), np.uint8) if images is None else images
    labels = np.array([0, 1, 2, 0, 1, 2]) if labels is None else labels
    return RawSplit(images=images, labels=labels)


def test_sound_data_passes_with_exact_types():
    train, test, names = validated(raw_data())
    assert (train.labels.dtype, test.labels.dtype, names) == (np.int64, np.int64, ("a", "b", "c"))
    assert test.labels.tolist() == [2, 0] and len(train) == 6


def test_strided_images_become_contiguous_and_keep_their_values():
    images = np.arange(6 * 4 * 5 * 3, dtype=np.uint32).astype(np.uint8).reshape(6, 4, 5, 3)
    train, _, _ = validated(raw_data(train=split(images.transpose(0, 3, 1, 2)), test=None))
    assert train.images.flags.c_contiguous
    np.testing.assert_array_equal(train.images.transpose(0, 2, 3, 1), images)


def test_classes_without_names_are_numbered():
    assert validated(raw_data(class_names=None))[2] == ("0", "1", "2")


BAD_TRAIN = {
    "float32": split(np.zeros((6, 1, 4, 5), np.float32)),
    "int64": split(np.zeros((6, 1, 4, 5), np.int64)),
    "expected (N, C, H, W)": split(np.zeros((6, 4, 5), np.uint8)),
    "2 channels": split(np.zeros((6, 2, 4, 5), np.uint8)),
    "empty": split(np.zeros((0, 1, 4, 5), np.uint8), np.zeros(0, np.int64)),
    "H and W above 0": split(np.zeros((6, 1, 0, 5), np.uint8)),
    "float64": split(labels=np.zeros(6)),
    "bool": split(labels=np.array([True, False] * 3)),
    "shape (6, 2)": split(labels=np.zeros((6, 2), np.int64)),
    "6 images and 5 labels": split(labels=np.array([0, 1, 2, 0, 1])),
    "-1 … 2": split(labels=np.array([0, 1, 2, 0, 1, -1])),
    "18446744073709551615": split(labels=np.array([0, 1, 2, 0, 1, 2**64 - 1], np.uint64)),
    "up to 3": split(labels=np.array([0, 1, 2, 0, 1, 3])),
    "classes (b)": split(labels=np.array([0, 2, 2, 0, 0, 2])),
}


@pytest.mark.parametrize("text", BAD_TRAIN)
def test_each_fault_of_the_train_split_is_named(text, one_line):
    with pytest.raises(InputError) as error:
        validated(raw_data(train=BAD_TRAIN[text]))
    one_line(error, text, "toy")


BAD_TEST = {
    "(3, 4, 5)": split(np.zeros((6, 3, 4, 5), np.uint8)),
    "(1, 5, 5)": split(np.zeros((6, 1, 5, 5), np.uint8)),
    "up to 3": split(labels=np.array([0, 1, 2, 0, 1, 3])),
    "empty": split(np.zeros((0, 1, 4, 5), np.uint8), np.zeros(0, np.int64)),
    "test images are float64": split(np.zeros((6, 1, 4, 5))),
}


@pytest.mark.parametrize("text", BAD_TEST)
def test_each_fault_of_the_test_split_is_named(text, one_line):
    with pytest.raises(InputError) as error:
        validated(raw_data(test=BAD_TEST[text]))
    one_line(error, text, "test")


def test_one_class_is_refused(one_line):
    for names in (None, ("a",)):
        with pytest.raises(InputError) as error:
            validated(raw_data(train=split(labels=np.zeros(6, np.int64)), class_names=names))
        one_line(error, "only one class")


@pytest.mark.parametrize("names", [("a", "b", "a"), ("a", "", "c")])
def test_class_names_are_distinct_and_not_empty(names, one_line):
    with pytest.raises(InputError) as error:
        validated(raw_data(class_names=names))
    one_line(error, "class names")


def test_a_huge_label_costs_no_memory(one_line):
    labels = np.array([0, 1, 2, 0, 1, 2**62])
    with pytest.raises(InputError) as error:
        validated(raw_data(train=split(labels=labels), class_names=None))
    one_line(error, "(3, 4, 5, 6, 7, …)")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_exactly_the_labels_0_to_k_pass(labels):
    images = np.zeros((len(labels), 1, 2, 2), np.uint8)
    raw = raw_data(train=split(images, np.array(labels)), test=None, class_names=None)
    complete = set(labels) == set(range(len(set(labels)))) and len(set(labels)) > 1
    if complete:
        assert len(validated(raw)[2]) == len(set(labels))
    else:
        with pytest.raises(InputError):
            validated(raw)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 1, 2, 2), np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 1, 2, 3), np.uint8).transpose(0, 1, 3, 2), np.zeros(2, np.int64)),
        (np.zeros((2, 1, 2, 2), np.uint8), np.zeros(2, np.int32)),
        (np.zeros((2, 1, 2, 2), np.uint8), np.zeros(3, np.int64)),
    ],
)
def test_a_split_cannot_be_made_of_other_arrays(images, labels):
    with pytest.raises(InputError, match="expected"):
        Split(images=images, labels=labels)
