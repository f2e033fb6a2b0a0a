"""Desktop and server GPUs through NVML, NVIDIA's management library (`pip install nvidia-ml-py`).

NVML starts on a Jetson too, and then answers "Not Supported" to nearly everything: that a GPU is
there is therefore known only once a value has been read (oat_edge/device/jetson.py has the rest).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oat_edge.device.system import System
from oat_edge.errors import DependencyError
from oat_edge.require import require

# nvml.h, nvmlClocksEventReasons: bit -> why the clocks are lower than they could be.
THROTTLE_REASONS = {
    0x001: "idle",
    0x002: "application clocks setting",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x100: "display clock setting",
    0x200: "board limit",
    0x400: "reliability voltage",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuFacts:
    """What NVML says of a GPU; None where it does not, and `warnings` say why."""

    name: str | None
    driver: str | None
    compute_capability: str | None
    """E.g. "9.0"."""
    clock_mhz: float | None
    """Of the multiprocessors, now."""
    clock_max_mhz: float | None
    memory_clock_mhz: float | None
    memory_clock_max_mhz: float | None
    power_limit_w: float | None
    """What is enforced."""
    temperature_c: float | None
    throttle_reasons: tuple[str, ...] | None
    """Why the clocks are lower than they could be, now; "idle" is one."""
    persistence: bool | None
    """Whether the driver stays loaded while nothing uses the GPU."""
    warnings: tuple[str, ...] = ()


def detect(system: System) -> tuple[GpuFacts | None, str | None]:
    """Facts of the first visible GPU, or why there are none."""
    if system.recorded:
        return None, "NVML cannot ask the GPU of a recorded tree"
    try:
        nvml = require("pynvml", purpose="the state of an NVIDIA GPU")
        nvml.nvmlInit()
    except DependencyError as error:
        return None, str(error)
    except Exception as error:  # NVMLError exists only once the module does
        return None, f"NVML does not start ({error}): nvidia-smi may say why"
    try:
        return _ask(nvml, os.environ)
    finally:
        nvml.nvmlShutdown()


def nvidia_driver(system: System) -> str | None:
    """Version of the loaded NVIDIA kernel driver; None if there is none."""
    text = system.read("proc/driver/nvidia/version")
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)", text) if text else None
    return found.group(1) if found else None


def reasons(mask: int) -> tuple[str, ...]:
    """Names of the bits of NVML's mask; bits without a name are given as numbers."""
    names = [name for bit, name in THROTTLE_REASONS.items() if mask & bit]
    unknown = mask & ~sum(THROTTLE_REASONS)
    return (*names, *([f"unknown ({unknown:#x})"] if unknown else []))


def first_visible(environ: Mapping[str, str]) -> str | None:
    """The first GPU that CUDA shows this process: an index or a UUID; None if it shows none.

    As CUDA reads the variable: what is not a device ends the list.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return "0"
    first = visible.split(",")[0].strip()
    return first if re.fullmatch(r"\d+|(?:GPU|MIG)-[\w/-]+", first) else None


def _ask(nvml: Any, environ: Mapping[str, str]) -> tuple[GpuFacts | None, str | None]:
    chosen = first_visible(environ)
    if chosen is None:
        visible = environ.get("CUDA_VISIBLE_DEVICES")
        return None, f"CUDA_VISIBLE_DEVICES is '{visible}', which shows no GPU"
    warnings: list[str] = []
    try:
        device = _handle(nvml, chosen)
        several = chosen.isdecimal() and nvml.nvmlDeviceGetCount() > 1
    except nvml.NVMLError as error:
        return None, f"NVML finds no GPU '{chosen}' ({error}): look at CUDA_VISIBLE_DEVICES"

    if several and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        # CUDA counts the fastest first, NVML in the order of the bus.
        warnings.append(
            f"gpu: there are several and CUDA may count them otherwise than NVML, whose number "
            f"{chosen} this is: set CUDA_DEVICE_ORDER=PCI_BUS_ID to be sure"
        )

    def read(field: str, function: str, *arguments: int) -> Any:
        try:
            return getattr(nvml, function)(device, *arguments)
        except nvml.NVMLError as error:
            warnings.append(f"gpu.{field}: NVML says '{error}'")
            return None

    sm, memory = nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM
    clock = read("clock_mhz", "nvmlDeviceGetClockInfo", sm)
    temperature = read("temperature_c", "nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
    if clock is None and temperature is None:
        reason = warnings[-1].partition(": ")[2]
        return None, f"{reason} to a clock and a temperature: NVML has no values of this GPU"
    limit = read("power_limit_w", "nvmlDeviceGetEnforcedPowerLimit")
    mask = read("throttle_reasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
    capability = read("compute_capability", "nvmlDeviceGetCudaComputeCapability")
    persistence = read("persistence", "nvmlDeviceGetPersistenceMode")
    facts = GpuFacts(
        name=_text(read("name", "nvmlDeviceGetName")),
        driver=_text(_driver(nvml, warnings)),
        compute_capability=None if capability is None else ".".join(map(str, capability)),
        clock_mhz=_float(clock),
        clock_max_mhz=_float(read("clock_max_mhz", "nvmlDeviceGetMaxClockInfo", sm)),
        memory_clock_mhz=_float(read("memory_clock_mhz", "nvmlDeviceGetClockInfo", memory)),
        memory_clock_max_mhz=_float(
            read("memory_clock_max_mhz", "nvmlDeviceGetMaxClockInfo", memory)
        ),
        power_limit_w=None if limit is None else limit / 1000,
        temperature_c=_float(temperature),
        throttle_reasons=None if mask is None else reasons(mask),
        persistence=None if persistence is None else bool(persistence),
        warnings=tuple(warnings),
    )
    return facts, None


def _handle(nvml: Any, chosen: str) -> Any:
    """NVML's handle of a GPU; CUDA takes the beginning of a UUID too."""
    if chosen.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(chosen))
    for index in range(nvml.nvmlDeviceGetCount()):
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        if (_text(nvml.nvmlDeviceGetUUID(device)) or "").startswith(chosen):
            return device
    return nvml.nvmlDeviceGetHandleByUUID(chosen)  # a MIG instance, or an error


def _driver(nvml: Any, warnings: list[str]) -> Any:
    get: Callable[[], Any] = nvml.nvmlSystemGetDriverVersion
    try:
        return get()
    except nvml.NVMLError as error:
        warnings.append(f"gpu.driver: NVML says '{error}'")
        return None


def _text(value: Any) -> str | None:
    """Older nvidia-ml-py gives bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
