"""The idx format of the MNIST family: magic number, sizes, unsigned bytes; gzip around it."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from oat_edge.data.dataset import UInt8
from oat_edge.errors import InputError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, *, ndim: int) -> UInt8:
    """Array with `ndim` dimensions from a gzipped idx file; any damage raises `InputError`."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): fetch it again") from None
    return parse_idx(data, ndim=ndim, where=str(path))


def parse_idx(data: bytes, *, ndim: int, where: str) -> UInt8:
    """Array with `ndim` dimensions from the bytes of an idx file; `where` names it in errors."""
    header = 4 + 4 * ndim
    magic = bytes([0, 0, UNSIGNED_BYTE, ndim])
    if data[:4] != magic:
        raise InputError(
            f"{where} starts with {data[:4].hex() or 'nothing'}: expected {magic.hex()}, "
            f"an idx file of unsigned bytes with {ndim} dimensions"
        )
    if len(data) < header:
        raise InputError(f"{where} ends inside its header: fetch it again")
    shape = tuple(np.frombuffer(data, dtype=">u4", count=ndim, offset=4).tolist())
    if len(data) - header != math.prod(shape):
        raise InputError(
            f"{where} holds {len(data) - header} values: its header says {shape}, "
            f"that is {math.prod(shape)}: fetch it again"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)
