"""Where a machine tells what it draws: rails of a Jetson, NVML of a GPU, RAPL of a CPU."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable
from typing import Any, Protocol

from oat_edge.device.energy import Unwrapped
from oat_edge.device.jetson import is_jetson
from oat_edge.device.nvidia import reasons
from oat_edge.device.rails import Total, find_rails, total_of
from oat_edge.device.system import System
from oat_edge.errors import DependencyError
from oat_edge.require import require
from oat_edge.runtime import cuda

RAPL = "sys/class/powercap"
# How long NVML's energy counter may take to show that it counts.
PROBE_S = 0.5
# nvml.h: from Ampere on nvmlDeviceGetPowerUsage is a mean over a second.
NVML_POWER_AVERAGING_S = 1.0
# Lower clocks for these reasons are what the user wants, or no harm (names of nvidia.py).
NO_THROTTLING = ("idle", "application clocks setting")


class PowerSource(Protocol):
    """Something that tells power or energy."""

    name: str
    """ "ina3221", "ina238", "nvml" or "rapl"."""
    scope: str
    """What it covers."""
    counter: bool
    """True: `read` gives joules since some start; False: watts now."""
    averaging_s: float
    """A reading is a mean over so long; 0: it is of the instant."""
    reads: tuple[str, ...]
    """Files or functions behind it."""

    def read(self) -> float:
        """One reading; `OSError` if it cannot be had now."""
        ...


def power_source(system: System, *, on_gpu: bool) -> tuple[PowerSource | None, str | None]:
    """What tells the power of the processor that runs the network, or None and why.

    A Jetson's rails cover both processors; NVML tells nothing there (its calls succeed or say
    "not supported", without figures) and is never asked.
    """
    rails = find_rails(system)
    total, reason = total_of(rails)
    on_jetson = is_jetson(system)
    if total is not None and (on_jetson or not on_gpu):
        return RailSource(system, total), None
    if on_jetson:
        return None, reason if rails else (
            "this Jetson shows no INA3221 or INA238 (sys/bus/i2c/devices): expected JetPack 5 or "
            "later; in a container, mount /sys"
        )
    if on_gpu:
        return _nvml_source(system)
    return _rapl_source(system)


class RailSource:
    """Watts of a Jetson's total: V·I of its rails."""

    counter = False

    def __init__(self, system: System, total: Total) -> None:
        self.name = "+".join(dict.fromkeys(rail.chip for rail in total.rails))
        self.scope = total.scope
        self.averaging_s = max(rail.averaging_s for rail in total.rails)
        self.reads = tuple(name for rail in total.rails for name in rail.factors)
        self._system, self._rails = system, total.rails

    def read(self) -> float:
        """Watts now; `OSError` if a rail cannot be read."""
        return sum(rail.watts(self._system) for rail in self._rails)


class RaplSource:
    """Joules of the CPU's packages."""

    name = "rapl"
    counter = True
    averaging_s = 0.0

    def __init__(self, system: System, zones: dict[str, str]) -> None:
        numbers = ", ".join(name.removeprefix("package-") for name in zones)
        self.scope = f"CPU package{'s' if len(zones) > 1 else ''} {numbers}"
        self.reads = tuple(f"{zone}/energy_uj" for zone in zones.values())
        self._system = system
        self._unwrap = [
            Unwrapped(system.number(f"{zone}/max_energy_range_uj")) for zone in zones.values()
        ]

    def read(self) -> float:
        """Joules since some start; `OSError` if a package cannot be read."""
        total = 0.0
        for name, unwrap in zip(self.reads, self._unwrap, strict=True):
            value = self._system.number(name)
            if value is None:
                raise OSError(f"{name} gives no number")
            total += unwrap(value)
        return total / 1e6


class NvmlSource:
    """Joules of a GPU board, or watts where it has no counter."""

    name = "nvml"
    scope = "GPU board"

    def __init__(self, board: GpuBoard, *, counter: bool) -> None:
        self.board = board
        self.counter = counter
        self.averaging_s = 0.0 if counter else NVML_POWER_AVERAGING_S
        call = "nvmlDeviceGetTotalEnergyConsumption" if counter else "nvmlDeviceGetPowerUsage"
        self.reads: tuple[str, ...] = (call,)

    def read(self) -> float:
        """Joules since the driver was loaded, or watts; `OSError` if the GPU does not answer."""
        return self.board.energy_j() if self.counter else self.board.power_w()


class GpuBoard:
    """NVML's handle of the GPU that CUDA uses here; its methods raise `OSError`.

    Raises `DependencyError` without NVML, its Python module, or a GPU.
    """

    def __init__(self) -> None:
        self._nvml: Any = require("pynvml", purpose="reading a GPU's power and clocks")
        try:
            self._nvml.nvmlInit()
            self._device = self._nvml.nvmlDeviceGetHandleByPciBusId(bus_id().encode())
        except self._nvml.NVMLError as error:
            raise DependencyError(
                f"NVML does not answer ({error}): look at nvidia-smi; in a container, docker run "
                "--gpus all"
            ) from None

    def energy_j(self) -> float:
        """Energy since the driver was loaded."""
        return float(self._ask("nvmlDeviceGetTotalEnergyConsumption")) / 1000

    def power_w(self) -> float:
        """Power; on newer GPUs the mean of the last second."""
        return float(self._ask("nvmlDeviceGetPowerUsage")) / 1000

    def clock_mhz(self) -> float:
        """Clock of the multiprocessors."""
        return float(self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM))

    def temperature_c(self) -> float:
        """Of the chip."""
        return float(self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU))

    def throttled(self) -> tuple[str, ...]:
        """Why the clocks are lower than they could be, leaving out idleness and settings."""
        try:
            bits = int(self._ask("nvmlDeviceGetCurrentClocksEventReasons"))
        except OSError:  # what drivers before CUDA 12 call it
            bits = int(self._ask("nvmlDeviceGetCurrentClocksThrottleReasons"))
        return tuple(reason for reason in reasons(bits) if reason not in NO_THROTTLING)

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, function)(self._device, *arguments)
        except (self._nvml.NVMLError, AttributeError) as error:
            raise OSError(f"{function}: {error}") from None


def bus_id() -> str:
    """PCI address of the GPU that CUDA uses here; `DependencyError` without one.

    CUDA and NVML (and nvidia-smi) may number the GPUs of a machine differently.
    """
    cuda.gpu()  # starts the driver
    device, text = ctypes.c_int(), ctypes.create_string_buffer(32)
    cuda.call("cuDeviceGet", ctypes.byref(device), 0)
    cuda.call("cuDeviceGetPCIBusId", text, len(text), device)
    return text.value.decode()


def _nvml_source(system: System) -> tuple[PowerSource | None, str | None]:
    if system.recorded:
        return None, "NVML tells about this machine, not about a recorded tree"
    try:
        board = GpuBoard()
    except DependencyError as error:
        return None, str(error)
    if _counts(board.energy_j):
        return NvmlSource(board, counter=True), None
    try:
        board.power_w()
    except OSError as error:
        return None, f"the GPU tells neither energy nor power ({error}): expected one of them"
    return NvmlSource(board, counter=False), None


def _counts(read: Callable[[], float]) -> bool:
    """Whether an energy counter is there and moves: some answer with a constant."""
    try:
        first, until = read(), time.monotonic() + PROBE_S
        while time.monotonic() < until:
            time.sleep(PROBE_S / 25)
            if read() > first:
                return True
    except OSError:
        pass
    return False


def _rapl_source(system: System) -> tuple[PowerSource | None, str | None]:
    zones: dict[str, str] = {}
    for file in system.glob(f"{RAPL}/intel-rapl:*/name"):
        name = system.read(file) or ""
        # Not core, uncore and dram, which are parts of it, nor psys, which is more than the CPU.
        if re.fullmatch(r"package-\d+(-die-\d+)?", name):
            zones[name] = file.removesuffix("/name")
    if not zones:
        return None, (
            f"this machine shows no power sensor: expected RAPL ({RAPL}/intel-rapl:*) on a PC, "
            "INA3221 rails on a Jetson; virtual machines have none"
        )
    if any(system.number(f"{zone}/energy_uj") is None for zone in zones.values()):
        return None, (
            "RAPL's energy counter is readable by root only: run with sudo, or once "
            f"`sudo chmod a+r /{RAPL}/intel-rapl:*/energy_uj`"
        )
    return RaplSource(system, zones), None
