"""Recorded file trees of other machines stand in for this one."""

from __future__ import annotations

import subprocess
from datetime import datetime, timezone

import pytest

from oat_edge.bench import environment
from oat_edge.bench.environment import board_name, collect, library_versions, nvidia_driver
from oat_edge.errors import DependencyError
from oat_edge.runtime.cuda import Gpu, gpu

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
    found = collect(sysroot=root)
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
    found = collect(sysroot=tree(tmp_path, {"proc/cpuinfo": X86}))
    clocks = found.clocks_mhz
    assert (clocks.min, clocks.max, clocks.limit) == (2596.122, 3000.0, None)
    assert any(text.startswith("clocks_mhz.limit:") for text in found.warnings)


def test_mixed_governors_are_all_named(tmp_path):
    files = {"proc/cpuinfo": X86, **cpufreq("scaling_governor", "schedutil", "performance")}
    assert collect(sysroot=tree(tmp_path, files)).power_mode == "performance, schedutil"


def test_arm_board_is_named_by_core_and_device_tree(tmp_path):
    model = "NVIDIA Jetson Orin Nano Developer Kit\0"
    root = tree(tmp_path, {"proc/cpuinfo": ORIN, "proc/device-tree/model": model})
    device = collect(sysroot=root).device
    assert device.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert device.model == "Arm 0x41/0xd42"
    assert device.vector_extensions == ("asimd", "asimdhp", "asimddp")


def test_what_cannot_be_read_is_none_and_has_a_reason(tmp_path):
    found = collect(sysroot=tmp_path, folder=tmp_path)
    assert found.device.model is found.device.vector_extensions is None
    assert found.os is found.power_mode is found.clocks_mhz is found.load_average is None
    assert found.driver is found.git_commit is None
    reasons = {text.partition(":")[0] for text in found.warnings}
    assert reasons == {
        "driver", "device.model", "device.vector_extensions", "os", "power_mode", "clocks_mhz",
        "load_average", "git_commit",
    }  # fmt: skip


def test_nvidia_driver(tmp_path):
    assert nvidia_driver(tmp_path) is None
    root = tree(tmp_path, {"proc/driver/nvidia/version": NVRM})
    assert nvidia_driver(root) == "550.54.15"
    assert board_name(root) is None


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


def test_a_gpu_that_is_not_there_is_not_described(no_gpu, tmp_path):
    with pytest.raises(DependencyError, match="GPU"):
        collect(sysroot=tmp_path, device="cuda")


@pytest.mark.gpu
def test_a_gpu_is_the_device_and_the_cpu_its_host(needs_gpu):
    here, found = collect(), collect(device="cuda")
    assert found.device.kind == "cuda" and found.device.model == gpu().name
    assert found.device.host == here.device.model and found.device.cores == here.device.cores
    assert found.driver is not None or any("driver:" in text for text in found.warnings)
    assert found.device.gpu_memory_mb > 0 and "." in found.device.compute_capability


def test_clocks_and_power_mode_beside_a_gpu_are_said_to_be_the_cpus(tmp_path, monkeypatch):
    some = Gpu(
        name="A GPU", compute_capability="8.7", cuda="12.6", multiprocessors=8, memory_mb=8e3
    )
    monkeypatch.setattr(environment, "gpu", lambda: some)
    files = {"proc/cpuinfo": X86, **cpufreq("scaling_governor", "schedutil")}
    root = tree(tmp_path, files)
    told = [
        f"{name}: of the CPU; the GPU's are not read yet" for name in ("clocks_mhz", "power_mode")
    ]
    assert set(told) <= set(collect(sysroot=root, device="cuda").warnings)
    assert not any("of the CPU" in text for text in collect(sysroot=root).warnings)
    nothing = collect(sysroot=tmp_path / "empty", device="cuda")
    assert not any("of the CPU" in text for text in nothing.warnings)
