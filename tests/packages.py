"""NVIDIA's own packages, fetched to be read by a test; without pip or its index the test skips."""

from __future__ import annotations

import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

DOWNLOAD = [
    sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
]  # fmt: skip


def unpacked(package: str, folder: Path) -> None:
    """Fetch the wheel of `package` ("name" or "name==version") and unpack it into `folder`."""
    done = subprocess.run([*DOWNLOAD, "-d", folder, package], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"pip cannot have {package} for this Python")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def need_rtx() -> None:
    """Skip where RTX has no wheels. On x86-64 `dev` brings it: missing there is a failure."""
    if platform.machine() != "x86_64":
        pytest.skip("TensorRT-RTX is for x86-64", allow_module_level=True)
