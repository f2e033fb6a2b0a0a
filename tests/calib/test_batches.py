from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.calib.batches import CalibrationSet, make_batches
from oat_edge.data import Dataset, Split
from oat_edge.errors import InputError
from oat_edge.evaluation.pack import levels
from oat_edge.nn.fold import FoldedNetwork, fold
from tests.conftest import make_network

KNOTS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)
EPS = 32 / 255


@pytest.fixture(scope="module")
def folded() -> FoldedNetwork:
    return fold(make_network(), 0.5)


@pytest.fixture(scope="module")
def whole(folded: FoldedNetwork, digits: Dataset) -> CalibrationSet:
    return make_batches(
        folded, digits.train, lambdas=KNOTS, eps=EPS, attack_steps=3, num_images=60, batch_size=25
    )


def rows(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def test_every_knot_has_every_image_clean_and_attacked(whole: CalibrationSet) -> None:
    assert whole.lambdas == KNOTS
    assert (len(whole), whole.num_images) == (120, 60)
    for lam in KNOTS:
        here = whole.lam == np.float32(lam)
        clean, attacked = here & ~whole.adversarial, here & whole.adversarial
        assert clean.sum() == attacked.sum() == 10
        assert set(whole.indices[clean]) == set(whole.indices[attacked])
    assert whole.num_images == len(set(whole.indices[~whole.adversarial]))


def test_only_images_of_the_training_split(whole: CalibrationSet, digits: Dataset) -> None:
    train = digits.train
    clean = ~whole.adversarial
    np.testing.assert_array_equal(whole.images[clean], train.images[whole.indices[clean]])
    np.testing.assert_array_equal(whole.labels, train.labels[whole.indices])
    others = rows(digits.test.images) | rows(digits.val.images)
    assert not rows(whole.images[clean]) & (others - rows(train.images))
    assert whole.settings["split_sha256"] == train.sha256()


@settings(max_examples=8)
@given(eps=st.floats(0, 0.5), seed=st.integers(0, 2**31), steps=st.integers(1, 3))
def test_adversarial_images_lie_in_the_ball(
    folded: FoldedNetwork, digits: Dataset, eps: float, seed: int, steps: int
) -> None:
    made = make_batches(
        folded, digits.train, lambdas=KNOTS, eps=eps, attack_steps=steps, num_images=12, seed=seed
    )
    original = digits.train.images[made.indices].astype(np.int16)
    distance = np.abs(made.images.astype(np.int16) - original)
    assert distance.max() <= levels(eps)
    for batch in made.batches():
        assert batch.image.dtype == batch.lam.dtype == np.float32
        assert batch.image.min() >= 0 and batch.image.max() <= 1


def test_each_image_is_attacked_at_its_own_lambda(
    folded: FoldedNetwork, whole: CalibrationSet
) -> None:
    with torch.no_grad():
        losses = np.concatenate(
            [
                F.cross_entropy(
                    folded(torch.from_numpy(batch.image), torch.from_numpy(batch.lam)),
                    torch.from_numpy(whole.labels[start : start + whole.batch_size]),
                    reduction="none",
                ).numpy()
                for start, batch in zip(
                    range(0, len(whole), whole.batch_size), whole.batches(), strict=True
                )
            ]
        )
    for lam in KNOTS:
        here = whole.lam == np.float32(lam)
        assert losses[here & whole.adversarial].mean() > losses[here & ~whole.adversarial].mean()


def test_batches_are_all_samples_in_order(whole: CalibrationSet) -> None:
    batches = list(whole.batches())
    assert [len(batch.lam) for batch in batches] == [25, 25, 25, 25, 20]
    assert len(batches) == whole.num_batches
    images = np.concatenate([batch.image for batch in batches])
    np.testing.assert_array_equal(np.rint(images * 255), whole.images)
    np.testing.assert_array_equal(np.concatenate([batch.lam for batch in batches]), whole.lam)


def test_same_seed_same_set(folded: FoldedNetwork, digits: Dataset) -> None:
    def made(seed: int = 0, **changes: object) -> str:
        arguments = {"lambdas": KNOTS, "eps": EPS, "attack_steps": 1, "num_images": 12}
        arguments.update(changes)
        one = make_batches(folded, digits.train, seed=seed, **arguments)  # type: ignore[arg-type]
        return one.sha256()

    changes: list[dict[str, object]] = [
        {"seed": 1},
        {"eps": EPS / 2},
        {"attack_steps": 2},
        {"num_images": 13},
        {"kinds": ("clean",)},
        {"lambdas": (0.0,)},
    ]
    hashes = [made(), *[made(**change) for change in changes]]  # type: ignore[arg-type]
    assert made() == hashes[0]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("field", ["images", "lam", "adversarial", "labels", "indices"])
def test_hash_sees_every_value(whole: CalibrationSet, field: str) -> None:
    values = getattr(whole, field).copy()
    values.flat[-1] = values.flat[-1] == 0
    assert dataclasses.replace(whole, **{field: values}).sha256() != whole.sha256()


def test_clean_branch_alone(folded: FoldedNetwork, digits: Dataset) -> None:
    made = make_batches(folded, digits.train, lambdas=(0.0,), eps=EPS, attack_steps=1, num_images=8)
    assert made.lambdas == (0.0,) and not made.lam.any()
    assert made.to_json()["lambdas"] == [0.0]


def test_clean_images_alone(folded: FoldedNetwork, digits: Dataset) -> None:
    made = make_batches(
        folded, digits.train, lambdas=KNOTS, eps=EPS, num_images=12, kinds=("clean",)
    )
    assert not made.adversarial.any() and len(made) == 12
    assert made.to_json()["attack"] is None


def test_small_split_is_used_whole(folded: FoldedNetwork, digits: Dataset) -> None:
    few = digits.train.take(np.arange(7))
    shares: list[float] = []
    made = make_batches(
        folded, few, lambdas=KNOTS, eps=EPS, attack_steps=1, num_images=500, progress=shares.append
    )
    assert set(made.indices) == set(range(7)) and made.lambdas == KNOTS
    assert shares[-1] == 1 and shares == sorted(shares)


def test_manifest_entry_is_json(whole: CalibrationSet) -> None:
    value = json.loads(json.dumps(whole.to_json(), allow_nan=False))
    assert value["num_clean"] == value["num_adversarial"] == 60
    assert value["num_samples"] == 120 and value["num_images"] == 60
    assert value["lambdas"] == list(KNOTS) and value["sha256"] == whole.sha256()
    assert value["attack"]["eps"] == EPS and value["split"] == "train"


def test_take_keeps_the_samples_of_the_mask(whole: CalibrationSet) -> None:
    part = whole.take(whole.lam == 1)
    assert part.lambdas == (1.0,) and len(part) == 20
    np.testing.assert_array_equal(part.images, whole.images[whole.lam == 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambdas": ()}, "one or more"),
        ({"lambdas": (0.0, 1.5)}, "all in"),
        ({"lambdas": (float("nan"),)}, "all in"),
        ({"num_images": 5}, "6 or more"),
        ({"num_images": 0, "lambdas": (0.0,)}, "1 or more"),
        ({"kinds": ()}, "one or both"),
        ({"kinds": ("clean", "dirty")}, "one or both"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_refused(
    folded: FoldedNetwork, digits: Dataset, changes: dict[str, object], message: str
) -> None:
    arguments = {"lambdas": KNOTS, "eps": EPS, "num_images": 12} | changes
    with pytest.raises(InputError, match=message):
        make_batches(folded, digits.train, **arguments)  # type: ignore[arg-type]


def test_empty_set_is_refused(whole: CalibrationSet, folded: FoldedNetwork) -> None:
    with pytest.raises(InputError, match="empty"):
        whole.take(np.zeros(len(whole), dtype=bool))
    nothing = Split(images=np.zeros((0, 1, 8, 8), np.uint8), labels=np.zeros(0, np.int64))
    with pytest.raises(InputError, match="0 calibration images"):
        make_batches(folded, nothing, lambdas=(0.0,), eps=EPS)
