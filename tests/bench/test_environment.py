"""Recorded file trees of other machines stand in for this one."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest

from oat_edge.bench import environment, schema
from oat_edge.bench.environment import Environment, collect, library_versions
from oat_edge.device.jetson import board_name, detect
from oat_edge.device.nvidia import nvidia_driver
from oat_edge.device.system import System
from oat_edge.errors import DependencyError
from oat_edge.runtime.cuda import Gpu, gpu

TREES = Path(__file__).parents[1] / "device/trees"
X86 = """processor\t: 0
model name\t: AMD EPYC 9B14
cpu MHz\t\t: 2596.122
flags\t\t: fpu sse4_2 avx f16c fma avx2 avx512f avx512_vnni

processor\t: 1
model name\t: AMD EPYC 9B14
cpu MHz\t\t: 3000.000
"""
ORIN = """processor\t: 0
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes asimdhp cpuid asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd42
"""
NVRM = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cpufreq(name, *values):
    return {
        f"sys/devices/system/cpu/cpu{i}/cpufreq/{name}": f"{value}\n"
        for i, value in enumerate(values)
    }


def test_pc_with_all_facts(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/cpuinfo": X86,
            "proc/loadavg": "0.50 0.25 0.10 1/200 4242\n",
            "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            **cpufreq("scaling_governor", "performance", "performance"),
            **cpufreq("scaling_cur_freq", 2500000, 2700000),
            **cpufreq("cpuinfo_max_freq", 3500000, 3500000),
        },
    )
    found = collect(system=System(root))
    assert found.device.model == "AMD EPYC 9B14" and found.device.board is None
    assert found.device.vector_extensions == (
        "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512_vnni",
    )  # fmt: skip
    assert found.os == "Debian GNU/Linux 12 (bookworm)"
    assert found.power_mode == "performance"
    clocks = found.clocks_mhz
    assert (clocks.min, clocks.max, clocks.limit) == (2500.0, 2700.0, 3500.0)
    assert found.load_average == (0.5, 0.25, 0.1)


def test_without_cpufreq_the_clocks_come_from_cpuinfo(tmp_path):
    found = collect(system=System(tree(tmp_path, {"proc/cpuinfo": X86})))
    clocks = found.clocks_mhz
    assert (clocks.min, clocks.max, clocks.limit) == (2596.122, 3000.0, None)
    assert any(text.startswith("clocks_mhz.limit:") for text in found.warnings)


def test_mixed_governors_are_all_named(tmp_path):
    files = {"proc/cpuinfo": X86, **cpufreq("scaling_governor", "schedutil", "performance")}
    assert collect(system=System(tree(tmp_path, files))).power_mode == "performance, schedutil"


def test_arm_board_is_named_by_core_and_device_tree(tmp_path):
    model = "NVIDIA Jetson Orin Nano Developer Kit\0"
    root = tree(tmp_path, {"proc/cpuinfo": ORIN, "proc/device-tree/model": model})
    device = collect(system=System(root)).device
    assert device.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert device.model == "Arm 0x41/0xd42"
    assert device.vector_extensions == ("asimd", "asimdhp", "asimddp")


def test_what_cannot_be_read_is_none_and_has_a_reason(tmp_path):
    found = collect(system=System(tmp_path), folder=tmp_path)
    assert found.device.model is found.device.vector_extensions is None
    assert found.os is found.power_mode is found.clocks_mhz is found.load_average is None
    assert found.driver is found.git_commit is None
    reasons = {text.partition(":")[0] for text in found.warnings}
    assert reasons == {
        "recorded_from", "driver", "device.model", "device.machine", "device.cores",
        "device.vector_extensions", "os", "kernel", "python", "library_versions", "power_mode",
        "clocks_mhz", "load_average", "git_commit",
    }  # fmt: skip


def test_names_for_who_checks_a_device(tmp_path):
    system = System(tmp_path)
    assert nvidia_driver(system) is None and board_name(system) is None
    tree(tmp_path, {"proc/driver/nvidia/version": NVRM, "proc/device-tree/model": "A board\0"})
    assert nvidia_driver(system) == "550.54.15" and board_name(system) == "A board"


@pytest.mark.parametrize("text", ["", "0.5 0.25", "a b c", "nan 0 0", "0 inf 0"])
def test_a_load_that_is_none(text, tmp_path):
    found = collect(system=System(tree(tmp_path, {"proc/loadavg": text})))
    assert found.load_average is None
    assert any(text.startswith("load_average:") for text in found.warnings)


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    (tmp_path / "file").write_text("1")
    git("init", "--quiet")
    git("add", "file")
    git("commit", "--quiet", "-m", "one")
    git("tag", "v1")
    return tmp_path, git("rev-parse", "HEAD")


def test_git_commit_and_whether_files_differ_from_it(checkout):
    folder, commit = checkout
    assert collect(folder=folder).git_commit == commit
    (folder / "file").write_text("2")
    assert collect(folder=folder).git_commit == f"{commit}-dirty"


def test_this_machine(tmp_path):
    found = collect()
    assert found.device.cores >= 1 and found.kernel.count(" ") >= 1
    stamp = datetime.fromisoformat(found.timestamp_utc)
    assert stamp.utcoffset().total_seconds() == 0
    assert abs((datetime.now(timezone.utc) - stamp).total_seconds()) < 60
    versions = library_versions()
    assert {"oat-edge", "numpy", "onnxruntime"} <= set(versions)


def test_a_gpu_that_is_not_there_is_not_described(no_gpu):
    with pytest.raises(DependencyError, match="GPU"):
        collect(device="cuda")


@pytest.mark.gpu
def test_a_gpu_is_the_device_and_the_cpu_its_host(needs_gpu):
    here, found = collect(), collect(device="cuda")
    assert found.device.kind == "cuda" and found.device.model == gpu().name
    assert found.device.host == here.device.model and found.device.cores == here.device.cores
    assert found.driver is not None or any("driver:" in text for text in found.warnings)
    assert found.device.gpu_memory_mb > 0 and "." in found.device.compute_capability


def test_beside_a_gpu_the_cpus_facts_are_said_to_be_its_own(monkeypatch):
    some = Gpu(
        name="A GPU", compute_capability="8.7", cuda="12.6", multiprocessors=8, memory_mb=8e3
    )
    monkeypatch.setattr(environment, "gpu", lambda: some)
    here, beside = collect(), collect(device="cuda")
    assert (beside.device.kind, beside.device.model) == ("cuda", "A GPU")
    assert beside.device.host == here.device.model
    for name, value in (("clocks_mhz", here.clocks_mhz), ("power_mode", here.power_mode)):
        told = f"{name}: of the CPU; the GPU's are under jetson or gpu"
        assert (told in beside.warnings) == (value is not None)
        assert told not in here.warnings
    assert here.gpu is None
    assert (beside.gpu is None) == any(text.startswith("gpu: ") for text in beside.warnings)


def test_of_a_recorded_tree_nothing_of_this_machine_is_told(monkeypatch):
    def asked() -> Gpu:
        raise AssertionError("the GPU of this machine was asked")

    monkeypatch.setattr(environment, "gpu", asked)
    root = TREES / "agx-thor"
    found = collect(system=System(root), device="jetson")
    assert found.recorded_from == str(root)
    assert any(text.startswith("recorded_from: ") and "not of here" in text
               for text in found.warnings)  # fmt: skip
    assert (found.device.kind, found.device.model) == ("jetson", None)
    assert found.device.host == "Arm 0x41/0xd83" and found.device.machine == "aarch64"
    assert (found.device.cores, found.kernel) == (14, "Linux 6.8.12-tegra")
    assert found.python == "3.12.3" and found.library_versions == {}
    assert found.jetson == detect(System(root)) and found.jetson.power_mode.name == "120W"
    assert found.gpu is found.driver is None
    reasons = {text.partition(":")[0] for text in found.warnings}
    assert {"gpu", "driver", "device.model", "library_versions"} <= reasons


def test_a_tree_that_says_little_is_marked_and_not_filled_from_here(tmp_path):
    found = collect(system=System(tmp_path))
    assert found.device.machine == found.kernel == found.python == "unknown"
    assert found.device.cores is None and found.jetson is None


@pytest.mark.parametrize("name", ["orin-nano", "orin-nx", "agx-orin", "agx-thor", "raspberry-pi"])
def test_every_tree_survives_the_way_through_json(name):
    found = collect(system=System(TREES / name))
    text = json.dumps(schema.dump(found))
    assert schema.load(Environment, json.loads(text), "environment") == found
    assert (found.jetson is None) == (name == "raspberry-pi")
    assert found.device.board == board_name(System(TREES / name))


def test_an_environment_from_before_these_fields_loads():
    old = schema.dump(collect())
    for name in ("jetson", "gpu", "recorded_from"):
        del old[name]
    found = schema.load(Environment, old, "environment")
    assert found.jetson is found.gpu is found.recorded_from is None
