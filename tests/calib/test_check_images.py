from __future__ import annotations

import numpy as np
import pytest

from oat_edge.calib.batches import CalibrationSet
from oat_edge.calib.check_images import check_split, spread_mask
from oat_edge.data import load
from oat_edge.data.dataset import Dataset


@pytest.fixture(scope="module")
def images() -> Dataset:
    return load("digits", train_samples=600)


@pytest.fixture(scope="module")
def calibration(images: Dataset) -> CalibrationSet:
    """Every third image of the training split."""
    indices = np.arange(0, len(images.train), 3)
    return CalibrationSet(
        images=images.train.images[indices],
        lam=np.zeros(len(indices), dtype=np.float32),
        adversarial=np.zeros(len(indices), dtype=bool),
        labels=images.train.labels[indices],
        indices=indices,
        settings={},
    )


def test_what_is_checked_was_not_calibrated(images: Dataset, calibration: CalibrationSet) -> None:
    num_val = len(images.val)
    left = np.setdiff1d(np.arange(len(images.train)), calibration.indices)
    split = check_split(images, calibration, 10_000)
    assert len(split) == num_val + len(left)
    assert np.array_equal(split.images[:num_val], images.val.images)
    rest = split.images[num_val:]
    expected = images.train.images[left]
    assert sorted(map(bytes, rest)) == sorted(map(bytes, expected)) and (rest != expected).any()


def test_images_that_were_trained_on_are_checked_only_where_others_are_too_few(
    images: Dataset, calibration: CalibrationSet
) -> None:
    num_val = len(images.val)
    for num in (1, num_val):
        assert np.array_equal(check_split(images, calibration, num).images, images.val.images)
    assert len(check_split(images, calibration, num_val + 7)) == num_val + 7


@pytest.mark.parametrize(("num", "wanted"), [(10, 3), (7, 7), (5, 9), (1, 1)])
def test_a_spread_mask_has_what_was_wanted_from_end_to_end(num: int, wanted: int) -> None:
    mask = spread_mask(num, wanted)
    assert mask.shape == (num,) and mask.sum() == min(num, wanted)
    assert mask[0] and (mask[-1] or wanted == 1)
    gaps = np.diff(np.flatnonzero(mask))
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
