"""The power rails of a Jetson, and which of them are its total.

Its INA3221 and INA238 chips measure voltage and current of supply rails; the kernel shows them
under hwmon.  INA3221: in{N}_input in mV, curr{N}_input in mA; INA238: power1_input in µW.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from oat_edge.device.jetson import soc_of
from oat_edge.device.system import System

DEVICES = "sys/bus/i2c/devices"
INA3221, INA238 = "ina3221", "ina238"
# The chip's channels; 4 to 6 are the shunts of these three, 7 is their sum.
CHANNELS = (1, 2, 3)
MODULE, BOARD = "without the carrier board", "module and carrier board"

# Rails whose sum is a total, and what it covers; the first rule whose rails are all there holds.
# VDD_IN (Orin Nano, Orin NX, Xavier NX) and POM_5V_IN (Nano, TX): NVIDIA's developer guides call
# them the module's whole input, so the others are parts of them (jetson_stats#51).
# VIN (Thor): the INA238 sits on the carrier board, before everything else (jetson_stats#900;
# forums.developer.nvidia.com 366461), hence another scope than the module's own sensors.
# AGX Orin: NVIDIA's developer guide (r36.4, "Software-Based Power Consumption Modeling") says of
# VIN_SYS_5V0 that "VDDQ_VDD2_1V8AO power is also included": adding it would count DRAM twice.
TOTALS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("VDD_IN",), MODULE),
    (("POM_5V_IN",), MODULE),
    (("VIN",), BOARD),
    (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), MODULE),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rail:
    """One measured supply; names of files as `System` takes them."""

    label: str
    chip: str
    factors: tuple[str, ...]
    """Files whose product is the power: millivolts and milliamperes, or microwatts alone."""
    averaging_s: float
    """A reading is a mean over so long; 0 if the driver does not say."""

    def watts(self, system: System) -> float:
        """Power now; `OSError` if a file cannot be read."""
        product = 1.0
        for name in self.factors:
            value = system.number(name)
            if value is None:
                raise OSError(f"{name} gives no number")
            product *= value
        return product * 1e-6  # mV·mA and µW alike


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """Rails that together are the total, and what that covers."""

    rails: tuple[Rail, ...]
    scope: str


def find_rails(system: System) -> tuple[Rail, ...]:
    """All rails of the board's INA3221 and INA238 chips; empty if it shows none.

    USB-C supplies (ucsi-source-psy-*) tell what was negotiated, not what is drawn: not looked at.
    """
    rails: list[Rail] = []
    chips = [(name, system.read(name) or "") for name in system.glob(f"{DEVICES}/*/name")]
    # Thor's one INA238 has no label; any other chip without one may measure anything.
    is_input = soc_of(system) == "tegra264" and sum(INA238 in chip for _, chip in chips) == 1
    for name, chip in chips:
        device = name.removesuffix("/name")
        unnamed = "VIN" if is_input else f"{INA238} {device.rpartition('/')[2]}"
        for folder in system.glob(f"{device}/hwmon/hwmon*"):
            if INA3221 in chip:
                rails += _ina3221(system, folder)
            elif INA238 in chip:
                rails += _ina238(system, folder, unnamed=unnamed)
    return tuple(rails)


def total_of(rails: tuple[Rail, ...]) -> tuple[Total | None, str | None]:
    """The rails that are the total, or None and why; never a sum that no rule allows."""
    by_label = {rail.label: rail for rail in rails}
    for labels, covers in TOTALS:
        if all(label in by_label for label in labels):
            twice = [name for name in labels if sum(rail.label == name for rail in rails) > 1]
            if twice:
                return None, (
                    f"two rails are called {twice[0]}, expected one, so that the board's total is "
                    "not known; please report the board"
                )
            chosen = tuple(by_label[label] for label in labels)
            if covers == BOARD:
                return Total(rails=chosen, scope=f"board input: {labels[0]}, {covers}"), None
            return Total(rails=chosen, scope=f"module rails: {' + '.join(labels)}, {covers}"), None
    have = ", ".join(sorted(by_label)) or "none"
    return None, (
        f"no rule says which rails are this board's total (it has {have}): expected VDD_IN, VIN "
        "or another of oat_edge/device/rails.py; please report the board"
    )


def _ina3221(system: System, folder: str) -> list[Rail]:
    rails = []
    for channel in CHANNELS:
        label = system.read(f"{folder}/in{channel}_label")
        # "NC" is not connected; a channel that is off has no readings.
        if not label or re.search(r"\bNC\b", label):
            continue
        if system.read(f"{folder}/in{channel}_enable") == "0":
            continue
        factors = (f"{folder}/in{channel}_input", f"{folder}/curr{channel}_input")
        rails.append(_rail(system, folder, label=label, chip=INA3221, factors=factors))
    return rails


def _ina238(system: System, folder: str, *, unnamed: str) -> list[Rail]:
    power = f"{folder}/power1_input"
    if system.number(power) is None:
        return []
    # The chip has one channel; drivers name it, if at all, in one of these.
    labels = (system.read(f"{folder}/{name}") for name in ("power1_label", "in1_label", "label"))
    label = next((label for label in labels if label), unnamed)
    return [_rail(system, folder, label=label, chip=INA238, factors=(power,))]


def _rail(system: System, folder: str, *, label: str, chip: str, factors: tuple[str, ...]) -> Rail:
    # kernel.org, hwmon/ina3221: milliseconds, over all samples and channels.
    interval_ms = system.number(f"{folder}/update_interval") or 0.0
    return Rail(label=label, chip=chip, factors=factors, averaging_s=interval_ms / 1000)
