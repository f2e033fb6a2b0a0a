"""glibc: keep what a batch has freed for the next one.

An attack or a training step frees all its activations at its end. By default glibc gives most of
that back to the system, and the next step gets it again page by page, each of them cleared.
PGD on 250 images was 1.3 to 1.8 times as fast without (`benchmarks/kept_memory.py`).
"""

from __future__ import annotations

import ctypes
import platform

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER, NONE = -1, 0


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees until it ends.

    For processes that compute the same thing again and again, and do little else. Returns whether
    that was possible: with another C library nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # A block that is mapped by itself, as large ones are, goes back as soon as it is freed.
    return bool(mallopt(M_MMAP_MAX, NONE)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
