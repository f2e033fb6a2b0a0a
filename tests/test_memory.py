"""In processes of their own: what malloc is told cannot be taken back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Blocks up to 64 MiB, written and freed, again and again, as activations are; prints page faults.
LOOP = """
import resource
import numpy as np
from oat_edge.memory import keep_freed_memory
{first}
def step():
    layers = [np.full(2**size, 1.0) for size in range(16, 24)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(first: str) -> int:
    command = [sys.executable, "-c", LOOP.format(first=first)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_memory_that_was_freed_is_not_cleared_again():
    before, kept = faults(""), faults("assert keep_freed_memory()")
    assert before > 1000 and kept < before / 10
