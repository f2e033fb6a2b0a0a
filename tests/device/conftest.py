"""Trees of other machines, and machines that can be changed.

The trees are written from public documentation (trees/README.md), never measured.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from oat_edge.device import machine_files
from oat_edge.device.system import System
from tests.device.machines import JETSON_CLOCKS, MODES, NVIDIA_SMI, NVPMODEL, Machine

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


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine of no kind, its tools on PATH, on which one is root."""
    root, tools, state = (tmp_path / name for name in ("root", "tools", "state"))
    for folder in (root / "proc/sys/kernel/random", tools):
        folder.mkdir(parents=True)
    (root / "proc/sys/kernel/random/boot_id").write_text("first\n")
    for name, script in (
        ("nvpmodel", NVPMODEL), ("jetson_clocks", JETSON_CLOCKS), ("nvidia-smi", NVIDIA_SMI),
    ):  # fmt: skip
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    (tools / "mode").write_text("0 15W\n")
    (tools / "clocks").write_text("free\n")
    (tools / "clocks_known").write_text("1755, 1980\n")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("TOOLS", str(tools))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(machine_files.VARIABLE, str(state))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return Machine(root, tools, state)


@pytest.fixture
def jetson(machine: Machine) -> Machine:
    tree = machine.root / "proc/device-tree"
    tree.mkdir()
    (tree / "compatible").write_text("nvidia,p3767-0005\0nvidia,tegra234\0")
    (machine.root / "etc").mkdir()
    (machine.root / "etc/nvpmodel.conf").write_text(MODES)
    return machine


@pytest.fixture
def pc(machine: Machine) -> Machine:
    for core, governor in enumerate(("schedutil", "schedutil", "powersave")):
        folder = machine.root / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")
    return machine
