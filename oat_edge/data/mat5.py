"""Integer arrays from MATLAB 5 files, as SVHN comes in.

Own code and not `scipy.io.loadmat`: on a damaged file scipy's compiled parser does not raise, it
ends the process (segmentation fault, seen with scipy 1.17). Layout: MathWorks, "MAT-File Format".
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.errors import InputError

HEADER = 128
# Version 1, written on a little-endian machine.
VERSION = b"\x00\x01IM"
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
INTEGERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 12: "<i8", 13: "<u8"}
# Classes double, single, int8 … uint64; below are cells, structs, objects, text and sparse arrays.
NUMERIC = range(6, 16)
COMPLEX = 0x0800


def read_mat5(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays by name; a file with anything but real integers in it raises `InputError`."""
    try:
        return _parse(path.read_bytes())
    # UnicodeDecodeError is a ValueError.
    except (OSError, ValueError, struct.error, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read ({reason:.120}): expected a MATLAB 5 file, fetch it again"
        ) from None


def _parse(data: bytes) -> dict[str, npt.NDArray[Any]]:
    if data[HEADER - len(VERSION) : HEADER] != VERSION:
        raise ValueError("wrong header")
    arrays: dict[str, npt.NDArray[Any]] = {}
    place = HEADER
    while place < len(data):
        # The bytes of a whole variable follow their tag without padding.
        kind, length = struct.unpack_from("<II", data, place)
        body = _take(data, place + 8, length)
        place += 8 + length
        if kind == COMPRESSED:
            plain = zlib.decompress(body)
            kind, length = struct.unpack_from("<II", plain)
            body = _take(plain, 8, length)
        if kind != MATRIX:
            raise ValueError(f"data type {kind} where a variable is expected")
        name, array = _matrix(body)
        arrays[name] = array
    return arrays


def _matrix(body: bytes) -> tuple[str, npt.NDArray[Any]]:
    """Name and array of one variable: four elements, flags, sizes, name and values."""
    (kind, flags), place = _element(body, 0)
    if kind != UINT32 or len(flags) != 8:
        raise ValueError("a variable has no flags")
    # The class is the lowest byte; MATLAB stores doubles that are whole as small integers.
    if flags[0] not in NUMERIC or struct.unpack_from("<I", flags)[0] & COMPLEX:
        raise ValueError("a variable is no real numeric array")
    (kind, sizes), place = _element(body, place)
    if kind != INT32 or len(sizes) % 4:
        raise ValueError("a variable has no sizes")
    shape = struct.unpack(f"<{len(sizes) // 4}i", sizes)
    (kind, name), place = _element(body, place)
    if kind != INT8:
        raise ValueError("a variable has no name")
    (kind, values), _ = _element(body, place)
    if kind not in INTEGERS:
        raise ValueError(f"values of data type {kind}, expected integers")
    dtype = np.dtype(INTEGERS[kind])
    if math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f"{len(values)} bytes of {dtype.name} for shape {shape}")
    return name.decode("ascii"), np.frombuffer(values, dtype).reshape(shape, order="F")


def _element(data: bytes, place: int) -> tuple[tuple[int, bytes], int]:
    """Type and bytes of the element at `place`, and the place of the next one."""
    kind, length = struct.unpack_from("<II", data, place)
    if kind >> 16:
        # Small element: the length in the upper half of the tag, up to 4 bytes inside it.
        if (length := kind >> 16) > 4:
            raise ValueError("a small element is too long")
        return (kind & 0xFFFF, _take(data, place + 4, length)), place + 8
    return (kind, _take(data, place + 8, length)), place + 8 + (length + 7) // 8 * 8


def _take(data: bytes, place: int, length: int) -> bytes:
    part = data[place : place + length]
    if len(part) != length:
        raise ValueError("the file ends early")
    return part
