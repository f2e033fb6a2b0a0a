import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, integer_dtypes, unsigned_integer_dtypes
from scipy.io import savemat

from oat_edge.data.mat5 import read_mat5
from oat_edge.errors import InputError

native_integers = integer_dtypes(endianness="<") | unsigned_integer_dtypes(endianness="<")
names = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,20}", fullmatch=True)


@settings(max_examples=60)
@given(
    st.dictionaries(
        names, arrays(native_integers, array_shapes(min_dims=2, max_side=5)), max_size=3
    ),
    st.booleans(),
)
def test_reads_what_scipy_writes(tmp_path_factory, content, compressed):
    path = tmp_path_factory.getbasetemp() / "written.mat"
    savemat(path, content, do_compression=compressed)
    found = read_mat5(path)
    assert found.keys() == content.keys()
    for name, array in content.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.fixture(scope="module", params=[True, False], ids=["compressed", "plain"])
def sound(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("mat") / "sound.mat"
    images = np.random.default_rng(2).integers(0, 256, (5, 4, 3, 2)).astype(np.uint8)
    content = {"X": images, "y": np.array([[1], [2]], np.uint8)}
    savemat(path, content, do_compression=request.param)
    return path, content, request.param


@given(st.data())
def test_a_damaged_file_never_does_worse_than_input_error(sound, data):
    path, content, compressed = sound
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    target = path.with_name("damaged.mat")
    target.write_bytes(damaged)
    try:
        found = read_mat5(target)
        # A checksum guards compressed variables; of plain ones only the structure is certain.
        for name in content if compressed else ():
            np.testing.assert_array_equal(found[name], content[name])
        assert all(array.dtype.kind in "iu" for array in found.values())
    except InputError as error:
        assert "damaged.mat" in str(error) and "\n" not in str(error)


@given(st.data())
def test_a_truncated_file_is_refused_or_lacks_a_variable(sound, data):
    path, content, _ = sound
    whole = path.read_bytes()
    target = path.with_name("cut.mat")
    target.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        assert read_mat5(target).keys() < content.keys()
    except InputError as error:
        assert "cut.mat cannot be read" in str(error)


# Places in the plain file: 128 variable, 136 flags, 152 sizes (5, 4, 3, 2), 176 small element "X".
@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (160, b"\xff\xff\xff\xff", r"for shape \(-1, 4, 3, 2\)"),
        (160, b"\xfb\xff\xff\xff\xfc\xff\xff\xff", "cannot be read"),
        (160, b"\x06", r"120 bytes of uint8 for shape \(6, 4, 3, 2\)"),
        (178, b"\x05", "small element is too long"),
        (132, b"\xff\xff", "the file ends early"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, place, value, text):
    path = tmp_path / "edited.mat"
    savemat(path, {"X": np.zeros((5, 4, 3, 2), np.uint8)})
    data = bytearray(path.read_bytes())
    assert data[160:181] == b"\x05\0\0\0\x04\0\0\0\x03\0\0\0\x02\0\0\0\x01\0\x01\0X"
    data[place : place + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(InputError, match=text):
        read_mat5(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"X": np.zeros((2, 2))}, "data type 9"),
        ({"X": np.ones((2, 2), complex)}, "no real numeric array"),
        ({"X": "text"}, "no real numeric array"),
        ({"X": {"a": 1}}, "no real numeric array"),
    ],
)
def test_other_variables_are_refused(tmp_path, content, text):
    savemat(tmp_path / "other.mat", content)
    with pytest.raises(InputError, match=rf"other\.mat cannot be read .*{text}"):
        read_mat5(tmp_path / "other.mat")


def test_other_formats_are_refused(tmp_path, one_line):
    path = tmp_path / "other.mat"
    savemat(path, {"X": np.zeros((2, 2), np.uint8)}, format="4")
    version_4 = path.read_bytes()
    nested = zlib.compress(struct.pack("<II", 15, 0))
    hdf5 = b"\x89HDF\r\n\x1a\n" + bytes(200)
    unknown = bytes(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(nested)) + nested
    for data, text in (
        (version_4, "wrong header"),
        (hdf5, "wrong header"),
        (b"", "wrong header"),
        (unknown, "data type 15"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError) as error:
            read_mat5(path)
        one_line(error, "other.mat cannot be read", text)
