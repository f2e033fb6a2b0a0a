"""CIFAR-10, SVHN and STL-10 from small files in the original formats."""

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.data import cifar10, load, stl10
from oat_edge.data.archive import read_members
from oat_edge.errors import InputError


def write_tar(path, contents, *, prefix=""):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_files(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def cifar_files(rng):
    """Contents by member name; 20 records a file, and the arrays of the test batch."""
    contents = {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n"}
    for name in (*cifar10.TRAIN_FILES, cifar10.TEST_FILE):
        images = rng.integers(0, 256, (20, 3, 32, 32)).astype(np.uint8)
        labels = np.arange(20, dtype=np.uint8) % 10
        records = b"".join(bytes([y]) + x.tobytes() for x, y in zip(images, labels, strict=True))
        contents[f"cifar-10-batches-bin/{name}"] = records
    return contents, images, labels


@pytest.mark.parametrize("form", ["tar", "dotted tar", "unpacked", "inside", "sub-folder"])
def test_cifar10_in_every_form(tmp_path, cifar_files, form):
    contents, images, labels = cifar_files
    data_dir = tmp_path
    if form == "unpacked":
        write_files(tmp_path, contents)
    elif form == "inside":
        write_files(tmp_path, contents)
        data_dir = tmp_path / "cifar-10-batches-bin"
    elif form == "sub-folder":
        (tmp_path / "cifar10").mkdir()
        write_tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", contents)
    else:
        prefix = "./" if form == "dotted tar" else ""
        write_tar(tmp_path / "cifar-10-binary.tar.gz", contents, prefix=prefix)
    data = load("cifar10", data_dir=data_dir)
    assert (len(data.train), len(data.val), data.image_shape) == (90, 10, (3, 32, 32))
    np.testing.assert_array_equal(data.test.images, images)
    np.testing.assert_array_equal(data.test.labels, labels)
    assert data.class_names[6] == "frog"
    files = data.record["source"]["files"]
    assert len(files) == (6 if form in ("unpacked", "inside") else 1)
    assert not any(file["published"] for file in files)


def test_cifar10_train_split_holds_all_five_batches(tmp_path, cifar_files):
    contents, _, _ = cifar_files
    write_tar(tmp_path / "cifar-10-binary.tar.gz", contents)
    data = load("cifar10", data_dir=tmp_path)
    seen = {image.tobytes() for split in (data.train, data.val) for image in split.images}
    for name in cifar10.TRAIN_FILES:
        content = contents[f"cifar-10-batches-bin/{name}"]
        assert {content[n * 3073 + 1 : (n + 1) * 3073] for n in range(20)} <= seen


@given(st.binary(max_size=7000).filter(lambda data: not data or len(data) % 3073))
def test_cifar10_batch_of_another_size_is_refused(data):
    with pytest.raises(InputError, match=rf"batch\.bin has {len(data)} bytes"):
        cifar10.parse_batch(data, "batch.bin")


def test_cifar10_label_above_nine_is_refused(tmp_path, cifar_files, one_line):
    contents, _, _ = cifar_files
    batch = bytearray(contents["cifar-10-batches-bin/data_batch_3.bin"])
    batch[0] = 10
    write_files(tmp_path, {**contents, "cifar-10-batches-bin/data_batch_3.bin": bytes(batch)})
    with pytest.raises(InputError) as error:
        load("cifar10", data_dir=tmp_path)
    one_line(error, "up to 10", "10 class names")


def test_tar_without_a_member_says_which(tmp_path, cifar_files, one_line):
    contents, _, _ = cifar_files
    del contents["cifar-10-batches-bin/data_batch_4.bin"]
    write_tar(tmp_path / "cifar-10-binary.tar.gz", contents)
    with pytest.raises(InputError) as error:
        load("cifar10", data_dir=tmp_path)
    one_line(error, "holds no cifar-10-batches-bin/data_batch_4.bin")


def test_tar_member_that_is_a_link_is_refused(tmp_path, one_line):
    (tmp_path / "secret").write_bytes(b"secret")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("folder/name")
        member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        archive.addfile(member)
    with pytest.raises(InputError) as error:
        read_members([tmp_path / "a.tar.gz"], ["folder/name"])
    one_line(error, "not a plain file")


def test_tar_is_never_unpacked(tmp_path, cifar_files):
    contents, _, _ = cifar_files
    write_tar(tmp_path / "cifar-10-binary.tar.gz", {"../escaped": b"x", "/abs": b"x", **contents})
    load("cifar10", data_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]


@pytest.fixture(scope="module")
def small_tar(tmp_path_factory):
    path = tmp_path_factory.mktemp("tar") / "small.tar.gz"
    noise = np.random.default_rng(1).bytes(300)
    write_tar(path, {"f/first": noise, "f/second": b"2" * 100})
    return path, {"first": noise, "second": b"2" * 100}


@given(st.data())
def test_a_truncated_tar_is_refused_or_complete(small_tar, data):
    path, contents = small_tar
    whole = path.read_bytes()
    cut = path.with_name("cut.tar.gz")
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        # What comes after the last wanted member is not read.
        assert read_members([cut], ["f/first", "f/second"]) == contents
    except InputError as error:
        assert "cut.tar.gz" in str(error) and "\n" not in str(error)


@given(st.data())
def test_a_damaged_tar_raises_nothing_but_input_error(small_tar, data):
    path, contents = small_tar
    damaged = bytearray(path.read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    target = path.with_name("damaged.tar.gz")
    target.write_bytes(damaged)
    try:
        found = read_members([target], ["f/first", "f/second"])
        assert {name: len(content) for name, content in found.items()} == {
            name: len(content) for name, content in contents.items()
        }
    except InputError as error:
        assert "damaged.tar.gz" in str(error)


@pytest.fixture
def svhn_files(tmp_path, rng):
    from scipy.io import savemat

    arrays = {}
    for name, num in (("train", 40), ("test", 20)):
        images = rng.integers(0, 256, (32, 32, 3, num)).astype(np.uint8)
        labels = (np.arange(num, dtype=np.uint8) % 10 + 1)[:, None]
        savemat(tmp_path / f"{name}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
        arrays[name] = images, labels
    return tmp_path, arrays


def test_svhn_images_and_label_ten(svhn_files):
    folder, arrays = svhn_files
    data = load("svhn", data_dir=folder)
    assert (len(data.train), len(data.val), data.image_shape) == (30, 10, (3, 32, 32))
    images, labels = arrays["test"]
    for n in range(20):
        np.testing.assert_array_equal(data.test.images[n].transpose(1, 2, 0), images[..., n])
    # MATLAB counts 1 … 10, and 10 is the digit 0.
    assert data.test.labels.tolist() == [int(y) if y < 10 else 0 for y in labels[:, 0]]
    assert data.class_names[0] == "0"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"X": np.zeros((32, 32, 3, 20), np.uint8)}, "holds ['X']: expected X and y"),
        ({"X": np.zeros((32, 32, 3, 2), np.int8), "y": np.array([[1], [2]])}, "X is int8"),
        ({"X": np.zeros((3, 32, 32, 20), np.uint8), "y": np.array([[1], [2]])}, "(3, 32, 32, 20)"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[0], [1]], np.uint8)}, "1 … 10"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[11], [1]], np.uint8)}, "1 … 10"),
        (
            {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [1], [1]])},
            "2 images and 3",
        ),
    ],
)
def test_svhn_with_other_arrays_is_refused(svhn_files, content, text, one_line):
    from scipy.io import savemat

    folder, _ = svhn_files
    savemat(folder / "train_32x32.mat", content)
    with pytest.raises(InputError) as error:
        load("svhn", data_dir=folder)
    one_line(error, text)


@pytest.fixture
def stl_files(rng):
    contents = {"stl10_binary/class_names.txt": b"airplane\n"}
    for name, num in (("train", 30), ("test", 10)):
        images = rng.integers(0, 256, (num, 3, 96, 96)).astype(np.uint8)
        # Written column by column, as MATLAB does.
        columns = b"".join(plane.tobytes(order="F") for image in images for plane in image)
        contents[f"stl10_binary/{name}_X.bin"] = columns
        contents[f"stl10_binary/{name}_y.bin"] = bytes(n % 10 + 1 for n in range(num))
    return contents, images


@pytest.mark.parametrize("packed", [True, False])
def test_stl10_is_turned_upright(tmp_path, stl_files, packed):
    contents, images = stl_files
    if packed:
        write_tar(tmp_path / "stl10_binary.tar.gz", contents)
    else:
        write_files(tmp_path, contents)
    data = load("stl10", data_dir=tmp_path)
    assert (len(data.train), len(data.val), data.image_shape) == (20, 10, (3, 96, 96))
    np.testing.assert_array_equal(data.test.images, images)
    assert data.test.labels.tolist() == list(range(10))
    assert data.class_names[7] == "monkey"


@pytest.mark.parametrize("bad", [0, 11, 255])
def test_stl10_label_outside_one_to_ten_is_refused(bad):
    with pytest.raises(InputError, match=r"train_y\.bin holds other values than 1 … 10"):
        stl10.parse_split(bytes(stl10.IMAGE_BYTES * 2), bytes([1, bad]), "train")


@pytest.mark.parametrize("size", [0, 1, stl10.IMAGE_BYTES - 1, stl10.IMAGE_BYTES + 1])
def test_stl10_file_of_another_size_is_refused(size):
    with pytest.raises(InputError, match=rf"train_X\.bin has {size} bytes"):
        stl10.parse_split(bytes(size), b"\x01", "train")
