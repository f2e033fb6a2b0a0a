"""NVIDIA Jetson: which module and JetPack it is, and what state it is in.

Everything is read from files and from commands that only look; none needs root. A fact that cannot
be read is None and `Jetson.warnings` says why, by the fact's name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from oat_edge.device.cpu import CPUFREQ, clocks_locked
from oat_edge.device.jetpack import software
from oat_edge.device.system import System

# SoCs that are sold as Jetson modules only: Xavier, Orin, Thor.
SOCS = ("tegra194", "tegra234", "tegra264")
# Orin's GPU is 17000000.gpu (.ga10b with JetPack 5), Thor's first cluster gpu-gpc-0.
GPU_DEVFREQ = re.compile(r"gpu-gpc-\d+|[0-9a-f]+\.(?:gpu|ga10b|gv11b)")


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerMode:
    """The mode of nvpmodel."""

    id: int
    name: str | None
    """E.g. "MAXN_SUPER", "15W"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuClocksMhz:
    """The GPU's clock now, and the limits between which it may be chosen."""

    min: float
    now: float
    max: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Fan:
    """The fan as it is driven, which does not prove that it turns."""

    percent: float | None
    profile: str | None
    """E.g. "quiet", "cool"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Jetson:
    """A Jetson and its state at one moment; `warnings` name what could not be read, and why."""

    model: str | None
    soc: str | None
    """E.g. "tegra234" (Orin)."""
    l4t: str | None
    """Version of Jetson Linux, e.g. "36.4.7"."""
    jetpack: str | None
    """Derived from `l4t`, e.g. "6.2.x"."""
    cuda: str | None
    """Of the toolkit that is installed."""
    tensorrt: str | None
    power_mode: PowerMode | None
    clocks_locked: bool | None
    """Whether neither the GPU's nor any CPU core's clock may change (`jetson_clocks`)."""
    gpu_clocks_mhz: GpuClocksMhz | None
    governors: dict[str, str] | None
    """Of "cpu" and "gpu"."""
    fan: Fan | None
    temperatures_c: dict[str, float] | None
    """By thermal zone, e.g. "tj-thermal"."""
    throttle_counts: dict[str, int] | None
    """Over-current events since the start: "oc1" under-voltage, "oc2" average, "oc3" peak."""
    warnings: tuple[str, ...]


def board_name(system: System) -> str | None:
    """The board's name from its device tree; None on machines without one (PCs).

    Docker hides the device tree; what the kernel and jetson-containers copy from it stays.
    """
    places = (
        "proc/device-tree/model",
        "sys/firmware/devicetree/base/model",
        "sys/devices/soc0/machine",
        "tmp/nv_jetson_model",
    )
    texts = (system.read(place) for place in places)
    return next((" ".join(text.split()) for text in texts if text), None)


def detect(system: System) -> Jetson | None:
    """What this Jetson is; None on any other machine."""
    if not is_jetson(system):
        return None
    model, soc = board_name(system), soc_of(system)
    installed = software(system)
    looked = _Look(system)
    if model is None:
        looked.miss("model", "neither the device tree nor sys/devices/soc0 is readable")
    if soc is None:
        looked.miss("soc", "proc/device-tree/compatible names no Tegra")
    clocks = looked.gpu_clocks()
    return Jetson(
        model=model,
        soc=soc,
        l4t=installed.l4t,
        jetpack=installed.jetpack,
        cuda=installed.cuda,
        tensorrt=installed.tensorrt,
        power_mode=looked.power_mode(),
        clocks_locked=looked.locked(clocks),
        gpu_clocks_mhz=clocks,
        governors=looked.governors(),
        fan=looked.fan(),
        temperatures_c=looked.temperatures(),
        throttle_counts=looked.throttle_counts(),
        warnings=(*installed.warnings, *looked.warnings),
    )


def is_jetson(system: System) -> bool:
    """Whether this is one, as far as it shows."""
    release = system.read("proc/sys/kernel/osrelease") or system.run("uname", "-r") or ""
    tegra = release.endswith("-tegra") and system.read("etc/nv_tegra_release") is not None
    return tegra or soc_of(system) in SOCS or "Jetson" in (board_name(system) or "")


def gpu_devfreq(system: System) -> str | None:
    """Folder of the GPU's clock below `System.root`, where cur_freq, min_freq and max_freq are."""
    folders = system.glob("sys/class/devfreq/*")
    return next((f for f in folders if GPU_DEVFREQ.fullmatch(f.rpartition("/")[2])), None)


def soc_of(system: System) -> str | None:
    """Name of the Tegra chip, such as "tegra264"; None on other machines."""
    for folder in ("proc/device-tree", "sys/firmware/devicetree/base"):
        compatible = (system.read(f"{folder}/compatible") or "").split("\0")
        for name in compatible:
            if found := re.fullmatch(r"nvidia,(tegra\d{1,4})", name.strip()):
                return found.group(1)
    return None


def _whole(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None


class _Look:
    """Reads fact by fact and notes what is missing."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.warnings: list[str] = []

    def miss(self, name: str, reason: str) -> None:
        self.warnings.append(f"{name}: {reason}")

    def number(self, path: str) -> float | None:
        """A number with which one can count: NaN and infinity are damage."""
        value = self.system.number(path)
        return value if value is not None and math.isfinite(value) else None

    def power_mode(self) -> PowerMode | None:
        said = self.system.run("nvpmodel", "-q") or ""
        found = re.search(r"NV Power Mode:[ \t]*(\S+)\s*^(\d{1,6})$", said, re.MULTILINE)
        if found:
            return PowerMode(id=int(found.group(2)), name=found.group(1))
        stored = re.search(r"pmode:(\d{1,6})", self.system.read("var/lib/nvpmodel/status") or "")
        if stored is None:
            self.miss("power_mode", "neither nvpmodel -q nor var/lib/nvpmodel/status says it")
            return None
        mode = int(stored.group(1))
        modes = self.system.read("etc/nvpmodel.conf") or ""
        names = {int(i): name for i, name in re.findall(r"ID=(\d{1,6})\s+NAME=(\S+)", modes)}
        if mode not in names:
            self.miss("power_mode.name", f"etc/nvpmodel.conf has no name for mode {mode}")
        return PowerMode(id=mode, name=names.get(mode))

    def gpu_clocks(self) -> GpuClocksMhz | None:
        folder = gpu_devfreq(self.system)
        if folder is None:
            self.miss("gpu_clocks_mhz", "sys/class/devfreq has no GPU")
            return None
        read = {name: self.number(f"{folder}/{name}_freq") for name in ("min", "cur", "max")}
        low, now, high = read["min"], read["cur"], read["max"]
        if low is None or now is None or high is None:
            missing = ", ".join(f"{name}_freq" for name, value in read.items() if value is None)
            self.miss("gpu_clocks_mhz", f"{folder} has no readable {missing}")
            return None
        return GpuClocksMhz(min=low / 1e6, now=now / 1e6, max=high / 1e6)

    def locked(self, gpu: GpuClocksMhz | None) -> bool | None:
        cpu = clocks_locked(self.system)
        if gpu is not None and gpu.min != gpu.max:
            return False
        if gpu is None or cpu is None:
            unknown = "GPU" if gpu is None else "CPU"
            self.miss("clocks_locked", f"the limits of the {unknown}'s clocks are not readable")
            return False if cpu is False else None
        return cpu

    def governors(self) -> dict[str, str] | None:
        of_cpu = {
            self.system.read(name) for name in self.system.glob(f"{CPUFREQ}/scaling_governor")
        }
        folder = gpu_devfreq(self.system)
        found = {
            "cpu": ", ".join(sorted(name for name in of_cpu if name)),
            "gpu": (self.system.read(f"{folder}/governor") if folder else None) or "",
        }
        for part, name in found.items():
            if not name:
                self.miss(f"governors.{part}", "it is not readable")
        return {part: name for part, name in found.items() if name} or None

    def fan(self) -> Fan | None:
        names = self.system.glob("sys/class/hwmon/hwmon*/name")
        folder = next((n[: -len("/name")] for n in names if self.system.read(n) == "pwmfan"), None)
        if folder is None:
            self.miss("fan", "sys/class/hwmon has no pwmfan")
            return None
        pwm = self.number(f"{folder}/pwm1")
        if pwm is None or not 0 <= pwm <= 255:
            self.miss("fan.percent", f"{folder}/pwm1 has no number from 0 to 255")
            pwm = None
        said = re.search(r"FAN_PROFILE:\s*([\w-]+)", self.system.run("nvfancontrol", "-q") or "")
        conf = self.system.read("etc/nvfancontrol.conf") or ""
        profile = said or re.search(r"^\s*FAN_DEFAULT_PROFILE\s+([\w-]+)", conf, re.MULTILINE)
        if profile is None:
            self.miss("fan.profile", "neither nvfancontrol -q nor etc/nvfancontrol.conf says it")
        elif said is None:
            self.miss("fan.profile", "the default of etc/nvfancontrol.conf (the query needs root)")
        return Fan(
            percent=None if pwm is None else round(100 * pwm / 255, 1),
            profile=profile.group(1) if profile else None,
        )

    def temperatures(self) -> dict[str, float] | None:
        found: dict[str, float] = {}
        silent = []
        for zone in self.system.glob("sys/class/thermal/thermal_zone*"):
            name = self.system.read(f"{zone}/type") or zone.rpartition("/")[2]
            milli = self.number(f"{zone}/temp")
            if milli is None:
                silent.append(name)
            else:
                found[name] = milli / 1000
        if silent:
            reason = "not readable (a part that is switched off has none)"
            self.miss("temperatures_c", f"{', '.join(silent)}: {reason}")
        elif not found:
            self.miss("temperatures_c", "sys/class/thermal has no zone")
        return found or None

    def throttle_counts(self) -> dict[str, int] | None:
        found: dict[str, int] = {}
        for path in self.system.glob("sys/class/hwmon/hwmon*/oc[0-9]*_event_cnt"):
            name = path.rpartition("/")[2].removesuffix("_event_cnt")
            count = _whole(self.system.read(path))
            if count is None:
                self.miss(f"throttle_counts.{name}", f"{path} holds no count")
            else:
                found[name] = count
        if not found:
            self.miss("throttle_counts", "sys/class/hwmon has no oc*_event_cnt")
        return found or None
