"""What a measurement ran on. Reads only; changes no setting of the machine.

A fact that cannot be read is None, and `warnings` says why. Files are read below `sysroot`, so
that a recorded tree of another machine can stand in for this one.
"""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from oat_edge import __version__
from oat_edge.bench.throughput import available_cores
from oat_edge.runtime.cuda import gpu

LIBRARIES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch",
    "pyautoattack",
)  # fmt: skip
# What decides the speed of a CNN: vector units and their int8, fp16 and bf16 parts.
VECTOR_EXTENSIONS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_int8", "amx_bf16",
    "neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """The processor that ran the network."""

    kind: str
    model: str | None
    board: str | None
    """Name from the device tree, such as "NVIDIA Jetson Orin Nano"; PCs have none."""
    machine: str
    cores: int
    """Logical cores that the process may use."""
    vector_extensions: tuple[str, ...] | None
    """Of the CPU."""
    host: str | None = None
    """Beside a GPU, `model` of the CPU."""
    compute_capability: str | None = None
    """Of a GPU, e.g. "9.0"."""
    cuda: str | None = None
    """Of a GPU: newest CUDA version that its driver serves."""
    gpu_memory_mb: float | None = None
    """Of a GPU (10^6 bytes); a Jetson shares it with the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClocksMhz:
    """CPU clocks over the cores at the start, and the highest that the machine allows."""

    min: float
    max: float
    limit: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """Device, system and software at the start of a bench."""

    device: Device
    os: str | None
    kernel: str
    driver: str | None
    python: str
    library_versions: dict[str, str]
    power_mode: str | None
    """On a CPU: the frequency governor."""
    clocks_mhz: ClocksMhz | None
    load_average: tuple[float, ...] | None
    """Over 1, 5 and 15 minutes."""
    git_commit: str | None
    """Of the working folder; ends in "-dirty" if files differ from the commit."""
    timestamp_utc: str
    warnings: tuple[str, ...]


def collect(
    *, sysroot: Path = Path("/"), folder: Path | None = None, device: str = "cpu"
) -> Environment:
    """Look at this machine.

    folder: where to ask for the git commit; None is the current one. device: what runs the
    network; on "cuda" the GPU must be there (`DependencyError`).
    """
    warnings: list[str] = []

    def known(name: str, value: str | None, reason: str) -> str | None:
        if value is None:
            warnings.append(f"{name}: {reason}")
        return value

    cpuinfo = _read(sysroot / "proc/cpuinfo") or ""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    if flags is None:
        warnings.append("device.vector_extensions: /proc/cpuinfo does not list them")
    governor = known("power_mode", _governor(sysroot), "the CPU has no readable governor")
    clocks = _clocks_mhz(sysroot, cpuinfo)
    if clocks is None:
        warnings.append("clocks_mhz: neither cpufreq nor /proc/cpuinfo shows them")
    elif clocks.limit is None:
        warnings.append("clocks_mhz.limit: cpufreq does not show it")
    driver = None
    if device == "cpu":
        warnings.append("driver: a CPU has none")
    else:
        reason = "/proc/driver/nvidia/version is not readable"
        driver = known("driver", nvidia_driver(sysroot), reason)
    if device != "cpu":
        for name, value in (("clocks_mhz", clocks), ("power_mode", governor)):
            if value is not None:
                warnings.append(f"{name}: of the CPU; the GPU's are not read yet")
    load = _read(sysroot / "proc/loadavg")
    if load is None:
        warnings.append("load_average: /proc/loadavg is not readable")
    cpu = Device(
        kind="cpu",
        model=known("device.model", _cpu_model(cpuinfo), "/proc/cpuinfo does not name it"),
        board=board_name(sysroot),
        machine=platform.machine(),
        cores=available_cores(),
        vector_extensions=_vector_extensions(flags.group(1)) if flags else None,
    )
    return Environment(
        device=cpu if device == "cpu" else _with_gpu(cpu, device),
        os=known("os", _os_name(sysroot), "/etc/os-release is not readable"),
        kernel=f"{platform.system()} {platform.release()}",
        driver=driver,
        python=platform.python_version(),
        library_versions=library_versions(),
        power_mode=governor,
        clocks_mhz=clocks,
        load_average=tuple(float(part) for part in load.split()[:3]) if load else None,
        git_commit=known("git_commit", _git_commit(folder), "not inside a git checkout"),
        timestamp_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        warnings=tuple(warnings),
    )


def _with_gpu(cpu: Device, kind: str) -> Device:
    found = gpu()
    return replace(
        cpu,
        kind=kind,
        model=found.name,
        host=cpu.model,
        compute_capability=found.compute_capability,
        cuda=found.cuda,
        gpu_memory_mb=found.memory_mb,
    )


def board_name(sysroot: Path = Path("/")) -> str | None:
    """The board's name from its device tree; None on machines without one (PCs)."""
    text = _read(sysroot / "proc/device-tree/model")
    return text.strip("\0 \n") or None if text else None


def nvidia_driver(sysroot: Path = Path("/")) -> str | None:
    """Version of the loaded NVIDIA kernel driver; None if there is none."""
    text = _read(sysroot / "proc/driver/nvidia/version")
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)", text) if text else None
    return found.group(1) if found else None


def library_versions() -> dict[str, str]:
    """Versions of the installed packages that a measurement depends on."""
    versions = {"oat-edge": __version__}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model(cpuinfo: str) -> str | None:
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(\S.*)$", cpuinfo, re.MULTILINE)
    if found:
        return found.group(1).strip()
    # Arm kernels name the core by numbers only (Cortex-A78AE is 0x41/0xd42).
    implementer = re.search(r"^CPU implementer\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    part = re.search(r"^CPU part\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    return f"Arm {implementer.group(1)}/{part.group(1)}" if implementer and part else None


def _vector_extensions(flags: str) -> tuple[str, ...]:
    have = set(flags.split())
    return tuple(name for name in VECTOR_EXTENSIONS if name in have)


def _os_name(sysroot: Path) -> str | None:
    text = _read(sysroot / "etc/os-release") or ""
    found = re.search(r'^PRETTY_NAME="?(.*?)"?$', text, re.MULTILINE)
    return found.group(1) if found else None


def _governor(sysroot: Path) -> str | None:
    texts = (_read(path) for path in _cpufreq(sysroot, "scaling_governor"))
    return ", ".join(sorted({text.strip() for text in texts if text})) or None


def _clocks_mhz(sysroot: Path, cpuinfo: str) -> ClocksMhz | None:
    def mhz(name: str) -> list[float]:
        texts = (_read(path) for path in _cpufreq(sysroot, name))
        return [int(text) / 1000 for text in texts if text and text.strip().isdigit()]

    now = mhz("scaling_cur_freq")
    now = now or [float(f) for f in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", cpuinfo, re.MULTILINE)]
    if not now:
        return None
    return ClocksMhz(min=min(now), max=max(now), limit=max(mhz("cpuinfo_max_freq"), default=None))


def _cpufreq(sysroot: Path, name: str) -> list[Path]:
    return sorted((sysroot / "sys/devices/system/cpu").glob(f"cpu[0-9]*/cpufreq/{name}"))


def _git_commit(folder: Path | None) -> str | None:
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(
            [*command, "--exclude=*"], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
