"""What a measurement ran on. Reads only; changes no setting of the machine.

A fact that cannot be read is None, and `warnings` says why. All is read through a `System`, so
that a recorded tree of another machine can stand in for this one; then nothing of this machine is
mixed in.
"""

from __future__ import annotations

import math
import platform
import re
import subprocess
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from oat_edge import __version__
from oat_edge.device import nvidia
from oat_edge.device.cpu import ClocksMhz, Cpu, look
from oat_edge.device.jetson import Jetson, board_name, detect
from oat_edge.device.nvidia import GpuFacts, nvidia_driver
from oat_edge.device.system import System
from oat_edge.runtime.cuda import gpu

THIS_MACHINE = System()
UNKNOWN = "unknown"
LIBRARIES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch",
    "pyautoattack",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """The processor that ran the network."""

    kind: str
    model: str | None
    board: str | None
    """Name from the device tree, such as "NVIDIA Jetson Orin Nano"; PCs have none."""
    machine: str
    """Instruction set; "unknown" if a recorded tree does not say it, as with all such texts."""
    cores: int | None
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
    jetson: Jetson | None = None
    """Of a Jetson, whichever of its processors was used; its `warnings` are its own."""
    gpu: GpuFacts | None = None
    """Beside a GPU: its state as NVML tells it, with `warnings` of its own."""
    recorded_from: str | None = None
    """The recorded tree that the facts are from; None if they are this machine's."""


def collect(
    *, system: System = THIS_MACHINE, folder: Path | None = None, device: str = "cpu"
) -> Environment:
    """Look at a machine.

    folder: where to ask for the git commit; None is the current one. device: what runs the
    network, "cpu", "cuda" or "jetson"; unless it is the CPU, the GPU must be there
    (`DependencyError`).
    """
    warnings: list[str] = []
    if system.recorded:
        warnings.append(f"recorded_from: the facts are of the tree {system.root}, not of here")
    cpu = look(system)
    described = _described(cpu, board_name(system), warnings)
    jetson, facts = detect(system), None
    if device == "cpu":
        warnings.append("driver: a CPU has none")
    else:
        described = _with_gpu(described, device, system, warnings)
        facts, why = gpu_facts(system, jetson)
        if why is not None:
            warnings.append(f"gpu: {why}")
        for name, value in (("clocks_mhz", cpu.clocks_mhz), ("power_mode", cpu.governor)):
            if value is not None:
                warnings.append(f"{name}: of the CPU; the GPU's are under jetson or gpu")
    driver = None if device == "cpu" else nvidia_driver(system)
    if driver is None and device != "cpu":
        warnings.append("driver: /proc/driver/nvidia/version is not readable")
    os_name, kernel, python, libraries = _software(system, warnings)
    commit = _git_commit(folder)
    if commit is None:
        warnings.append("git_commit: not inside a git checkout")
    return Environment(
        device=described,
        os=os_name,
        kernel=kernel,
        driver=driver,
        python=python,
        library_versions=libraries,
        power_mode=cpu.governor,
        clocks_mhz=cpu.clocks_mhz,
        load_average=_load_average(system, warnings),
        git_commit=commit,
        timestamp_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        jetson=jetson,
        gpu=facts,
        recorded_from=str(system.root) if system.recorded else None,
        warnings=tuple(warnings),
    )


def gpu_facts(system: System, jetson: Jetson | None) -> tuple[GpuFacts | None, str | None]:
    """What NVML says of the GPU, or why nothing; a Jetson's is not worth the question."""
    if jetson is not None:
        return None, "NVML tells next to nothing of a Jetson's GPU, its state is under jetson"
    return nvidia.detect(system)


def _described(cpu: Cpu, board: str | None, warnings: list[str]) -> Device:
    """The CPU as the device, and a reason for each of its facts that is missing."""
    reasons = {
        "device.model": (cpu.model, "/proc/cpuinfo does not name it"),
        "device.machine": (cpu.machine, "uname -m is not recorded"),
        "device.cores": (cpu.cores, "neither nproc nor /proc/cpuinfo says it"),
        "device.vector_extensions": (cpu.vector_extensions, "/proc/cpuinfo does not list them"),
        "power_mode": (cpu.governor, "the CPU has no readable governor"),
        "clocks_mhz": (cpu.clocks_mhz, "neither cpufreq nor /proc/cpuinfo shows them"),
    }
    warnings += [f"{name}: {why}" for name, (value, why) in reasons.items() if value is None]
    if cpu.clocks_mhz is not None and cpu.clocks_mhz.limit is None:
        warnings.append("clocks_mhz.limit: cpufreq does not show it")
    return Device(
        kind="cpu",
        model=cpu.model,
        board=board,
        machine=cpu.machine or UNKNOWN,
        cores=cpu.cores,
        vector_extensions=cpu.vector_extensions,
    )


def _with_gpu(cpu: Device, kind: str, system: System, warnings: list[str]) -> Device:
    if system.recorded:
        warnings.append("device.model: the driver of a recorded tree's GPU cannot be asked")
        return replace(cpu, kind=kind, model=None, host=cpu.model)
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


def _software(system: System, warnings: list[str]) -> tuple[str | None, str, str, dict[str, str]]:
    """Operating system, kernel, Python, libraries."""
    text = system.read("etc/os-release") or ""
    found = re.search(r'^PRETTY_NAME="?(.*?)"?$', text, re.MULTILINE)
    if found is None:
        warnings.append("os: /etc/os-release is not readable")
    name = found.group(1) if found else None
    if not system.recorded:
        kernel = f"{platform.system()} {platform.release()}"
        return name, kernel, platform.python_version(), library_versions()
    release = system.run("uname", "-r")
    if release is None:
        warnings.append("kernel: uname -r is not recorded")
    python = (system.run("python3", "--version") or "").removeprefix("Python ")
    if not python:
        warnings.append("python: python3 --version is not recorded")
    warnings.append("library_versions: those of a recorded tree are not known")
    kernel = UNKNOWN if release is None else f"{system.run('uname', '-s') or 'Linux'} {release}"
    return name, kernel, python or UNKNOWN, {}


def _load_average(system: System, warnings: list[str]) -> tuple[float, ...] | None:
    fields = (system.read("proc/loadavg") or "").split()[:3]
    try:
        load = tuple(float(field) for field in fields)
    except ValueError:
        load = ()
    if len(load) < 3 or not all(map(math.isfinite, load)):
        warnings.append("load_average: /proc/loadavg is not readable")
        return None
    return load


def library_versions() -> dict[str, str]:
    """Versions of the installed packages that a measurement depends on."""
    versions = {"oat-edge": __version__}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_commit(folder: Path | None) -> str | None:
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(
            [*command, "--exclude=*"], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
