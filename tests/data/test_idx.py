import dataclasses
import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.data import fashion_mnist, load
from oat_edge.data.idx import parse_idx, read_idx
from oat_edge.errors import InputError

FILES = tuple(file.name for file in fashion_mnist.SOURCE.remote)


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_reads_back_what_was_written(shape):
    array = np.arange(np.prod(shape), dtype=np.int64).reshape(shape) % 251
    np.testing.assert_array_equal(parse_idx(idx_bytes(array), ndim=len(shape), where="made"), array)


SOUND = idx_bytes(np.arange(24).reshape(2, 3, 4))


@given(st.integers(0, len(SOUND) - 1))
def test_every_truncation_is_refused(length):
    with pytest.raises(InputError, match="made"):
        parse_idx(SOUND[:length], ndim=3, where="made")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (SOUND + b"x", "25 values"),
        (b"\0\0\x0d\x03" + SOUND[4:], "00000d03"),
        (b"\0\0\x08\x01" + SOUND[4:], "3 dimensions"),
        (b"\x01" + SOUND[1:], "01000803"),
        (b"", "nothing"),
        # Sizes whose product does not fit 64 bits.
        (b"\0\0\x08\x03" + b"\xff" * 12, "0 values"),
    ],
)
def test_wrong_header_or_size_is_refused(data, text, one_line):
    with pytest.raises(InputError) as error:
        parse_idx(data, ndim=3, where="made")
    one_line(error, text)


GZIPPED = gzip.compress(SOUND)


@given(st.integers(0, len(GZIPPED) - 1))
def test_a_truncated_gz_is_refused(tmp_path_factory, length):
    path = tmp_path_factory.getbasetemp() / "cut.gz"
    path.write_bytes(GZIPPED[:length])
    with pytest.raises(InputError, match=r"cut\.gz"):
        read_idx(path, ndim=3)


@given(st.integers(0, len(GZIPPED) - 1), st.integers(1, 255))
def test_a_damaged_gz_is_refused_or_has_the_same_content(tmp_path_factory, place, change):
    damaged = bytearray(GZIPPED)
    damaged[place] ^= change
    path = tmp_path_factory.getbasetemp() / "damaged.gz"
    path.write_bytes(damaged)
    try:
        # Time and system of the gzip header carry no content.
        np.testing.assert_array_equal(read_idx(path, ndim=3).ravel(), np.arange(24))
    except InputError as error:
        assert "damaged.gz" in str(error)


@pytest.fixture
def made(tmp_path, rng, monkeypatch):
    """A small Fashion-MNIST in the original format; no system package."""
    monkeypatch.setattr(
        fashion_mnist, "SOURCE", dataclasses.replace(fashion_mnist.SOURCE, system_dir=None)
    )
    folder = tmp_path / "files"
    folder.mkdir()
    arrays = {}
    for kind, num in (("train", 40), ("t10k", 10)):
        arrays[f"{kind}-images-idx3-ubyte.gz"] = rng.integers(0, 256, (num, 28, 28))
        arrays[f"{kind}-labels-idx1-ubyte.gz"] = np.arange(num) % 10
    for name, array in arrays.items():
        (folder / name).write_bytes(gzip.compress(idx_bytes(array)))
    return folder, arrays


def test_fashion_mnist_from_a_folder(made):
    folder, arrays = made
    data = load("fashion-mnist", data_dir=folder)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 10)
    np.testing.assert_array_equal(data.test.images[:, 0], arrays[FILES[2]])
    np.testing.assert_array_equal(data.test.labels, np.arange(10))
    assert data.class_names[9] == "Ankle boot"
    files = data.record["source"]["files"]
    assert [file["path"] for file in files] == [str(folder / name) for name in FILES]
    assert not any(file["published"] for file in files)


def test_fashion_mnist_with_swapped_files_is_refused(made, one_line):
    folder, _ = made
    (folder / FILES[0]).write_bytes((folder / FILES[1]).read_bytes())
    with pytest.raises(InputError) as error:
        load("fashion-mnist", data_dir=folder)
    one_line(error, FILES[0], "00000801")


@pytest.mark.skipif(
    not all((fashion_mnist.SOURCE.system_dir / name).is_file() for name in FILES),
    reason="Debian's package dataset-fashion-mnist is not installed",
)
def test_fashion_mnist_of_debian_is_the_published_one():
    data = load("fashion-mnist", train_samples=1000)
    assert (len(data.train), len(data.val), len(data.test)) == (1000, 6000, 10000)
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    assert np.bincount(data.train.labels).tolist() == [100] * 10
    assert all(file["published"] for file in data.record["source"]["files"])
    assert data.record["test_split"] == "published"
