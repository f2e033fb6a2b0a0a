import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.data import load
from oat_edge.errors import InputError


def arrays(channels=3, **changes):
    rng = np.random.default_rng(0)
    tail = (6, 5) if channels is None else (6, 5, channels)
    made = {
        "x_train": rng.integers(0, 256, (40, *tail)).astype(np.uint8),
        "y_train": np.arange(40) % 2,
        "x_test": rng.integers(0, 256, (10, *tail)).astype(np.uint8),
        "y_test": np.arange(10) % 2,
    }
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("column", [False, True])
def test_layouts(tmp_path, channels, column):
    made = arrays(channels)
    if column:
        made |= {name: made[name][:, None].astype(np.uint8) for name in ("y_train", "y_test")}
    np.savez_compressed(tmp_path / "mine.npz", **made)
    data = load(str(tmp_path / "mine.npz"))
    assert (data.name, data.image_shape) == ("mine", (channels or 1, 6, 5))
    assert (len(data.train), len(data.val), data.class_names) == (36, 4, ("0", "1"))
    channels_last = data.test.images.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(channels_last, made["x_test"].reshape(channels_last.shape))
    np.testing.assert_array_equal(data.test.labels, made["y_test"].ravel())
    (file,) = data.record["source"]["files"]
    assert file["path"] == str(tmp_path / "mine.npz") and len(file["sha256"]) == 64


def test_class_names(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays(class_names=np.array(["cat", "dog"])))
    assert load(str(tmp_path / "mine.npz")).class_names == ("cat", "dog")


FAULTS = {
    "has no y_train, x_test": {"y_train": None, "x_test": None},
    "(40, 3, 6, 5)": {"x_train": np.zeros((40, 3, 6, 5), np.uint8)},
    "(40, 90)": {"x_train": np.zeros((40, 90), np.uint8)},
    "float32": {"x_train": np.full((40, 6, 5, 3), np.nan, np.float32)},
    "train labels are float64": {"y_train": np.full(40, np.nan)},
    "(40, 2)": {"y_train": np.zeros((40, 2), np.int64)},
    "40 images and 39 labels": {"y_train": np.arange(39) % 2},
    "()": {"y_test": np.int64(1)},
    "test images are (1, 6, 5)": {"x_test": np.zeros((10, 6, 5), np.uint8)},
    "3 class names": {"class_names": np.array(["a", "b", "c"]), "y_train": np.arange(40) % 4},
    "class_names is int64": {"class_names": np.array([1, 2])},
    "not objects": {"class_names": np.array(["cat", None], dtype=object)},
    "of 1001 classes (2, 3, 4, 5, 6, …)": {"y_train": np.r_[np.arange(39) % 2, 1000]},
}


@pytest.mark.parametrize("text", FAULTS)
def test_each_fault_is_named(tmp_path, text, one_line):
    np.savez(tmp_path / "mine.npz", **arrays(**FAULTS[text]))
    with pytest.raises(InputError) as error:
        load(str(tmp_path / "mine.npz"))
    one_line(error, text, "mine")


def test_pickles_are_never_opened(tmp_path, one_line):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").touch, ())

    np.savez(tmp_path / "mine.npz", **arrays(x_train=np.array([Bomb()], dtype=object)))
    with pytest.raises(InputError) as error:
        load(str(tmp_path / "mine.npz"))
    one_line(error, "cannot be read", "not objects")
    assert not (tmp_path / "exploded").exists()


def test_other_files_under_the_name_are_refused(tmp_path, one_line):
    path = tmp_path / "mine.npz"
    np.save(tmp_path / "lone.npy", np.zeros(3))
    for content in (b"", b"hello", (tmp_path / "lone.npy").read_bytes(), b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            load(str(path))
        one_line(error, "mine.npz cannot be read", "numpy.savez")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "sound.npz"
    np.savez_compressed(path, **arrays(None))
    return path, load(str(path)).record["splits"]


@given(st.data())
def test_a_truncated_file_is_refused(sound, data):
    path, _ = sound
    whole = path.read_bytes()
    cut = path.with_name("cut.npz")
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InputError, match=r"cut\.npz cannot be read"):
        load(str(cut))


@given(st.data())
def test_a_damaged_file_is_refused_or_gives_the_same_data(sound, data):
    path, splits = sound
    damaged = bytearray(path.read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    target = path.with_name("damaged.npz")
    target.write_bytes(damaged)
    try:
        assert load(str(target)).record["splits"] == splits
    except InputError as error:
        assert "damaged" in str(error) and "\n" not in str(error)
