import numpy as np
import pytest
from PIL import Image

from oat_edge.data import load
from oat_edge.errors import InputError


def write_image(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)


def fill(root, rng, *, per_class=10, shape=(6, 5, 3), classes=("cat", "dog")):
    """Images by (class, file name)."""
    made = {}
    for name in classes:
        for n in range(per_class):
            pixels = rng.integers(0, 256, shape).astype(np.uint8)
            write_image(root / name / f"{n:02}.png", pixels)
            made[name, f"{n:02}.png"] = pixels
    return made


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5)])
def test_train_and_test_folders(tmp_path, rng, shape):
    fill(tmp_path / "pets/train", rng, shape=shape)
    test = fill(tmp_path / "pets/test", rng, per_class=3, shape=shape)
    (tmp_path / "pets/README").write_text("not looked at")
    data = load(str(tmp_path / "pets"))
    assert (data.name, data.class_names) == ("pets", ("cat", "dog"))
    assert data.image_shape == (3 if len(shape) == 3 else 1, 6, 5)
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 6)
    # In the order of class and file name.
    expected = np.stack([test[key] for key in sorted(test)]).reshape(6, 6, 5, -1)
    np.testing.assert_array_equal(data.test.images.transpose(0, 2, 3, 1), expected)
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.record["test_split"] == "published"


def test_classes_alone_get_a_test_split_that_no_seed_moves(tmp_path, rng):
    fill(tmp_path, rng, per_class=20, classes=("a", "b", "c"))
    one, two = load(str(tmp_path), seed=0), load(str(tmp_path), seed=1)
    assert (len(one.train), len(one.val), len(one.test)) == (42, 6, 12)
    assert np.bincount(one.test.labels).tolist() == [4, 4, 4]
    assert one.test.sha256() == two.test.sha256() and one.val.sha256() != two.val.sha256()
    assert one.record["test_split"] == "made"


def test_hidden_entries_are_ignored(tmp_path, rng):
    fill(tmp_path, rng)
    before = load(str(tmp_path)).record
    (tmp_path / ".git").mkdir()
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "cat" / ".thumbnail").write_bytes(b"x")
    assert load(str(tmp_path)).record == before


def test_record_sees_contents_and_names(tmp_path, rng):
    fill(tmp_path, rng)
    hashes = {load(str(tmp_path)).record["source"]["sha256"]}
    (tmp_path / "cat" / "00.png").rename(tmp_path / "cat" / "zz.png")
    hashes.add(load(str(tmp_path)).record["source"]["sha256"])
    write_image(tmp_path / "cat" / "zz.png", np.zeros((6, 5, 3), np.uint8))
    source = load(str(tmp_path)).record["source"]
    assert len(hashes | {source["sha256"]}) == 3
    assert source["num_files"] == 20 and source["path"] == str(tmp_path)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "1"])
def test_other_modes_become_rgb(tmp_path, rng, mode):
    fill(tmp_path, rng)
    name = "00.tiff" if mode == "CMYK" else "00.png"
    (tmp_path / "cat" / "00.png").unlink()
    pixels = np.full((6, 5, 3), 255, np.uint8)
    write_image(tmp_path / "cat" / name, pixels, mode)
    data = load(str(tmp_path))
    white = [np.all(image == 255) for s in (data.train, data.val, data.test) for image in s.images]
    assert data.image_shape == (3, 6, 5) and sum(white) == 1


def test_another_size_or_mode_is_named(tmp_path, rng, one_line):
    fill(tmp_path, rng)
    odd = tmp_path / "dog" / "05.png"
    for pixels, text in (
        (np.zeros((6, 4, 3), np.uint8), "4x6 RGB"),
        (np.zeros((6, 5), np.uint8), "5x6 L"),
    ):
        write_image(odd, pixels)
        with pytest.raises(InputError) as error:
            load(str(tmp_path))
        one_line(error, f"{odd} is {text}", "5x6 RGB")


def test_sixteen_bits_are_refused_and_not_clipped(tmp_path, rng, one_line):
    fill(tmp_path, rng, shape=(6, 5))
    write_image(tmp_path / "dog" / "05.png", np.full((6, 5), 40000, np.uint16))
    with pytest.raises(InputError) as error:
        load(str(tmp_path))
    one_line(error, "05.png", "more than 8 bits")


@pytest.mark.parametrize("content", [b"", b"notes", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named(tmp_path, rng, content, one_line):
    fill(tmp_path, rng)
    (tmp_path / "cat" / "notes.png").write_bytes(content)
    with pytest.raises(InputError) as error:
        load(str(tmp_path))
    one_line(error, "cat/notes.png", "cannot be read as an image")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_image_is_named(tmp_path, rng, suffix, share, one_line):
    fill(tmp_path, rng, shape=(40, 40, 3))
    path = tmp_path / "cat" / f"cut.{suffix}"
    write_image(path, rng.integers(0, 256, (40, 40, 3)).astype(np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError) as error:
        load(str(tmp_path))
    one_line(error, f"cut.{suffix} cannot be read")


def test_structure_faults_are_named(tmp_path, rng, one_line):
    def fails(*texts):
        with pytest.raises(InputError) as error:
            load(str(tmp_path / "set"))
        one_line(error, *texts)

    root = tmp_path / "set"
    root.mkdir()
    fails("set is empty")
    fill(root / "train", rng)
    fails("train/ but no test/")
    fill(root / "test", rng, per_class=2)
    load(str(root))
    (root / "test" / "bird").mkdir()
    fails("bird is a class that train/ does not have")
    (root / "test" / "bird").rmdir()
    (root / "train" / "bird").mkdir()
    fails("bird is empty")
    (root / "train" / "bird" / "nested").mkdir()
    fails("nested is not a file")
    (root / "train" / "bird" / "nested").rmdir()
    (root / "train" / "bird").rmdir()
    (root / "train" / "list.txt").write_text("x")
    fails("list.txt is a file: expected only class folders")


def test_one_class_is_refused(tmp_path, rng, one_line):
    fill(tmp_path, rng, classes=("cat",))
    with pytest.raises(InputError) as error:
        load(str(tmp_path))
    one_line(error, "only one class")


def test_a_class_too_small_to_split_is_named(tmp_path, rng, one_line):
    fill(tmp_path, rng)
    for size, part in ((1, "test"), (2, "validation")):
        fill(tmp_path, rng, per_class=size, classes=("owl",))
        with pytest.raises(InputError) as error:
            load(str(tmp_path))
        one_line(error, "'owl' has 1 training image", part)
    fill(tmp_path, rng, per_class=3, classes=("owl",))
    data = load(str(tmp_path))
    assert [np.sum(s.labels == 2) for s in (data.train, data.val, data.test)] == [1, 1, 1]
