from __future__ import annotations

import os
import platform

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.device.cpu import ClocksMhz, clocks_locked, look
from oat_edge.device.system import System

ARM = ("asimd", "asimdhp", "asimddp")


@pytest.mark.parametrize(
    ("tree", "model", "cores", "extensions", "governor", "clocks"),
    [
        ("orin-nano", "Arm 0x41/0xd42", 6, ARM, "schedutil", (729.6, 729.6, 1728)),
        ("orin-nx", "Arm 0x41/0xd42", 8, ARM, "schedutil", (1984, 1984, 1984)),
        ("agx-orin", "Arm 0x41/0xd42", 12, ARM, "schedutil", (729.6, 729.6, 2201.6)),
        ("agx-thor", "Arm 0x41/0xd83", 14, (*ARM, "i8mm", "bf16", "sve", "sve2"), "schedutil",
         (972, 972, 2601)),
        ("raspberry-pi", "Raspberry Pi 5 Model B Rev 1.0", 4, ARM, "ondemand", (1500, 1500, 2400)),
    ],
)  # fmt: skip
def test_trees(tree, model, cores, extensions, governor, clocks, recorded):
    cpu = look(recorded(tree))
    low, high, limit = clocks
    assert (cpu.model, cpu.machine, cpu.cores) == (model, "aarch64", cores)
    assert cpu.vector_extensions == extensions and cpu.governor == governor
    assert cpu.clocks_mhz == ClocksMhz(min=low, max=high, limit=limit)


def test_of_this_machine_only_this_machine_is_told(tmp_path):
    here, nothing = look(System()), look(System(tmp_path))
    assert here.machine == platform.machine() and here.cores == len(os.sched_getaffinity(0))
    assert nothing.machine is nothing.cores is nothing.model is nothing.governor is None
    assert nothing.vector_extensions is nothing.clocks_mhz is None


@pytest.mark.parametrize("said", ["", "many", "-3", "0", "9" * 5000])
def test_without_a_core_count_the_listed_ones_count(said, copied):
    system = copied("orin-nano")
    (system.root / "commands/nproc").write_text(said)
    listed = 6 if said != "0" else None  # a count of none is no count
    assert look(system).cores == listed


@given(
    limits=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4
    )
)  # fmt: skip
def test_locked_means_that_no_core_has_a_choice(limits, tmp_path_factory):
    root = tmp_path_factory.mktemp("cpus")
    for index, (low, high) in enumerate(limits):
        folder = root / f"sys/devices/system/cpu/cpu{index}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_min_freq").write_text(f"{low}\n")
        (folder / "scaling_max_freq").write_text(f"{high}\n")
    assert clocks_locked(System(root)) == all(low == high for low, high in limits)
    (folder / "scaling_max_freq").unlink()
    assert clocks_locked(System(root)) is None


def test_limits_that_are_no_numbers_lock_nothing(copied):
    system = copied("orin-nx")
    assert clocks_locked(system) is True
    for name in system.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_m??_freq"):
        (system.root / name).write_text("nan")
    assert clocks_locked(system) is not True
