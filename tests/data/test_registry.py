import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.data import DATASETS, load
from oat_edge.data.registry import _resolve
from oat_edge.errors import InputError


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits

    data = load("digits")
    assert (data.name, data.image_shape, data.class_names) == (
        "digits",
        (1, 8, 8),
        (*"0123456789",),
    )
    splits = [data.train, data.val, data.test]
    assert sum(map(len, splits)) == 1797
    levels = np.unique(np.concatenate([split.images for split in splits]))
    assert (len(levels), levels[0], levels[-1]) == (17, 0, 255)
    # Back to 0 … 16 every image is one of scikit-learn's, with its label, and used once.
    bunch = load_digits()
    pairs = [
        (np.rint(image * 16 / 255).astype(int).tobytes(), label)
        for split in splits
        for image, label in zip(split.images[:, 0].astype(float), split.labels, strict=True)
    ]
    expected = zip((i.astype(int).tobytes() for i in bunch.images), bunch.target, strict=True)
    assert sorted(pairs) == sorted(expected)


def test_digits_test_split_never_changes():
    # Frozen: figures of different versions must compare.
    expected = "b0cc3bb807904c6c3661477aed8588e48ca7d8a9cd37f098998aa35e00d77c5d"
    for seed in (0, 1, 12345):
        assert load("digits", seed=seed, train_samples=100).test.sha256() == expected


def test_seed_moves_validation_and_subset_only():
    a, b = load("digits", seed=0, train_samples=200), load("digits", seed=1, train_samples=200)
    assert a.val.sha256() != b.val.sha256() and a.train.sha256() != b.train.sha256()
    assert a.train.sha256() == load("digits", seed=0, train_samples=200).train.sha256()
    assert a.val.sha256() == load("digits", seed=0).val.sha256()


def test_seed_moves_the_subset_inside_every_class_too():
    ranks = []
    for seed in (0, 1):
        whole, part = load("digits", seed=seed), load("digits", seed=seed, train_samples=100)
        images = [image.tobytes() for image in whole.train.images]
        places = [images.index(image.tobytes()) for image in part.train.images]
        assert places == sorted(places)
        # Ranks inside the class: places alone move with the validation split.
        ranks.append(
            [np.sum(whole.train.labels[:n] == whole.train.labels[n]).item() for n in places]
        )
    assert sorted(ranks[0]) != sorted(ranks[1])


@settings(max_examples=10)
@given(st.integers(10, 1295), st.integers(0, 2**32))
def test_splits_of_digits_share_no_sample_of_the_source(train_samples, seed):
    data = load("digits", train_samples=train_samples, seed=seed)
    assert (len(data.train), len(data.val), len(data.test)) == (train_samples, *SIZES[1:])
    counts = np.bincount(data.train.labels, minlength=10)
    assert counts.min() >= min(train_samples // 10, 120)
    digests = [
        {image.tobytes() for image in split.images} for split in (data.train, data.val, data.test)
    ]
    # The 1797 scans differ pairwise.
    assert len(set.union(*digests)) == sum(map(len, digests)) == train_samples + sum(SIZES[1:])


SIZES = (1295, 143, 359)


def test_record_is_json_and_tells_the_splits():
    data = load("digits", seed=3, train_samples=50)
    record = json.loads(json.dumps(data.record, allow_nan=False))
    assert record == data.record
    assert (record["name"], record["seed"], record["train_samples"]) == ("digits", 3, 50)
    assert record["test_split"] == "made" and "scikit-learn" in record["source"]["package"]
    for name in ("train", "val", "test"):
        split = getattr(data, name)
        assert record["splits"][name] == {"samples": len(split), "sha256": split.sha256()}


def test_fingerprint_sees_every_pixel_label_and_the_shape():
    split = load("digits").val
    pixels, labels = split.images.copy(), split.labels.copy()
    pixels[-1, 0, -1, -1] ^= 1
    labels[-1] = (labels[-1] + 1) % 10
    changed = [
        type(split)(images=pixels, labels=split.labels),
        type(split)(images=split.images, labels=labels),
        type(split)(images=split.images.reshape(-1, 1, 4, 16), labels=split.labels),
    ]
    assert len({split.sha256(), *(other.sha256() for other in changed)}) == 4


def test_too_many_train_samples_says_how_many_there_are(one_line):
    with pytest.raises(InputError) as error:
        load("digits", train_samples=1296)
    one_line(error, "1296", "1295")


def test_negative_seed_is_refused():
    with pytest.raises(InputError, match="seed is -1"):
        load("digits", seed=-1)


@pytest.mark.parametrize("name", DATASETS)
def test_every_registered_loader_exists(name):
    assert callable(_resolve(DATASETS[name]))


@pytest.mark.parametrize(
    ("data", "guess"),
    [("digit", "digits"), ("fashion_mnist", "fashion-mnist"), ("CIFAR-10", "cifar10")],
)
def test_a_slip_of_the_pen_gets_a_guess(data, guess, one_line):
    with pytest.raises(InputError) as error:
        load(data)
    one_line(error, f"did you mean '{guess}'?", *DATASETS)


@pytest.mark.parametrize(
    "data", ["", "no/such/path", "missing.npz", "~no-such-user/x", "a\0b", "x\ny", "z" * 5000]
)
def test_anything_else_lists_what_there_is(data, one_line):
    with pytest.raises(InputError) as error:
        load(data)
    one_line(error, *DATASETS, "image folder", ".npz")
    assert "did you mean" not in str(error.value) and len(str(error.value)) < 500


def test_a_file_of_another_kind_is_refused(tmp_path, one_line):
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(InputError) as error:
        load(str(tmp_path / "images.zip"))
    one_line(error, "images.zip", "is a file but not a .npz")
