"""The CPU: its model, cores, vector units, governor and clocks."""

from __future__ import annotations

import math
import platform
import re
from dataclasses import dataclass

from oat_edge.bench.throughput import available_cores
from oat_edge.device.system import System

CPUFREQ = "sys/devices/system/cpu/cpu[0-9]*/cpufreq"
# What decides the speed of a CNN: vector units and their int8, fp16 and bf16 parts.
VECTOR_EXTENSIONS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_int8", "amx_bf16",
    "neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ClocksMhz:
    """CPU clocks over the cores at the start, and the highest that the machine allows."""

    min: float
    max: float
    limit: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cpu:
    """What the system says of its CPU; None where it does not."""

    model: str | None
    machine: str | None
    """Instruction set, as `uname -m` names it."""
    cores: int | None
    """Logical cores that the process may use; of a recorded tree, those that it lists."""
    vector_extensions: tuple[str, ...] | None
    governor: str | None
    """Of the frequency; several are separated by commas."""
    clocks_mhz: ClocksMhz | None


def look(system: System) -> Cpu:
    """Read the CPU's facts."""
    cpuinfo = system.read("proc/cpuinfo") or ""
    flags = re.search(r"^(?:flags|Features)[ \t]*:[ \t]*(.*)$", cpuinfo, re.MULTILINE)
    return Cpu(
        model=_model(cpuinfo),
        machine=system.run("uname", "-m") if system.recorded else platform.machine(),
        cores=_recorded_cores(system, cpuinfo) if system.recorded else available_cores(),
        vector_extensions=_vector_extensions(flags.group(1)) if flags else None,
        governor=_governor(system),
        clocks_mhz=_clocks_mhz(system, cpuinfo),
    )


def clocks_locked(system: System) -> bool | None:
    """Whether no core may change its frequency; None if cpufreq does not show the limits."""
    folders = system.glob(CPUFREQ)
    limits = [
        (system.number(f"{folder}/scaling_min_freq"), system.number(f"{folder}/scaling_max_freq"))
        for folder in folders
    ]
    if not limits or any(None in pair for pair in limits):
        return None
    return all(low == high for low, high in limits)


def _model(cpuinfo: str) -> str | None:
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(\S.*)$", cpuinfo, re.MULTILINE)
    if found:
        return found.group(1).strip()
    # Arm kernels name the core by numbers only (Cortex-A78AE is 0x41/0xd42).
    implementer = re.search(r"^CPU implementer\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    part = re.search(r"^CPU part\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    return f"Arm {implementer.group(1)}/{part.group(1)}" if implementer and part else None


def _recorded_cores(system: System, cpuinfo: str) -> int | None:
    said = system.run("nproc") or ""
    if re.fullmatch(r"[0-9]{1,6}", said):
        return int(said) or None
    return len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or None


def _vector_extensions(flags: str) -> tuple[str, ...]:
    have = set(flags.split())
    return tuple(name for name in VECTOR_EXTENSIONS if name in have)


def _governor(system: System) -> str | None:
    texts = (system.read(name) for name in system.glob(f"{CPUFREQ}/scaling_governor"))
    return ", ".join(sorted({text for text in texts if text})) or None


def _clocks_mhz(system: System, cpuinfo: str) -> ClocksMhz | None:
    def mhz(name: str) -> list[float]:
        values = (system.number(path) for path in system.glob(f"{CPUFREQ}/{name}"))
        return [khz / 1000 for khz in values if khz is not None and math.isfinite(khz)]

    now = mhz("scaling_cur_freq")
    now = now or [float(f) for f in re.findall(r"^cpu MHz\s*:\s*(\d{1,6}\.?\d*)$", cpuinfo, re.M)]
    if not now:
        return None
    return ClocksMhz(min=min(now), max=max(now), limit=max(mhz("cpuinfo_max_freq"), default=None))
