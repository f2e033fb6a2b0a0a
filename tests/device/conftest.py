"""Trees of other machines: written from public documentation (trees/README.md), never measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from oat_edge.device.system import System

TREES = Path(__file__).with_name("trees")


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], System]:
    """The machine of a tree, by its name."""
    return lambda name: System(TREES / name)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], System]:
    """A copy of a tree, by its name, in which files may be changed."""

    def copy(name: str) -> System:
        shutil.copytree(TREES / name, tmp_path / name, symlinks=True)
        return System(tmp_path / name)

    return copy
