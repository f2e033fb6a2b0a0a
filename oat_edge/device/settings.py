"""The machine's settings that a bench can hold: power mode, clocks, governors.

Each is noted (`will`) before it is changed; RESTORE puts back what was noted. All of it raises
`DependencyError` where a tool is missing, fails, or does not do what it says.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from oat_edge.device.jetson import is_jetson
from oat_edge.device.power import bus_id
from oat_edge.device.system import System
from oat_edge.errors import DependencyError, InputError

GOVERNORS = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
GPU_CLOCKS_WERE = "GPU clocks, free or fixed (nvidia-smi does not tell which), then set free"
TIMEOUT_S = 60


class Will(Protocol):
    """Notes what a setting is; the change may begin when it returns."""

    def __call__(self, name: str, before: Any, *, was: str) -> None: ...  # noqa: D102


def set_power_mode(system: System, wanted: str, will: Will) -> str:
    """Set nvpmodel's mode by name or number; gives it in words.

    Raises `InputError` for a mode that the board does not have.
    """
    now, modes = _power_mode(system), _power_modes(system)
    number = _find_mode(wanted, modes)
    if number is None:
        have = ", ".join(f"{name} ({number})" for number, name in modes.items()) or "none known"
        raise InputError(f"power mode '{wanted}' is not one of this board's: {have}")
    name = _mode_text(number, modes)
    if number != now:
        will("power_mode", now, was=f"power mode {_mode_text(now, modes)}")
        run_tool("nvpmodel", "-m", str(number))
        if _power_mode(system) != number:
            raise DependencyError(
                f"the board did not take power mode {name} while running, it needs a restart: "
                f"sudo nvpmodel -m {number}, restart, then bench without --power-mode"
            )
    return f"power mode {name}"


def lock_clocks(
    system: System, folder: Path, will: Will, *, on_gpu: bool, keep_stored: bool = False
) -> str:
    """Fix the clocks of the processor that runs, on a Jetson of all; gives it in words.

    folder: for what jetson_clocks stores. keep_stored: an earlier bench stored it there and could
    not put it back, so the clocks are not as they were now.
    """
    if is_jetson(system):
        stored = folder / "jetson_clocks.conf"
        if not keep_stored:
            # jetson_clocks asks whether it may overwrite a file that is there.
            stored.unlink(missing_ok=True)
            run_tool("jetson_clocks", "--store", str(stored))
            will("clocks", str(stored), was="clocks as jetson_clocks stored them")
        run_tool("jetson_clocks")
        return "clocks fixed at the highest of the power mode (jetson_clocks)"
    if on_gpu:
        gpu = bus_id()
        mhz, words = _gpu_clock_mhz(gpu)
        # NVML sets and resets locked clocks but has no call that reads them (nvml.h, CUDA 13).
        will("gpu_clocks", {gpu: "free"}, was=GPU_CLOCKS_WERE)
        run_tool("nvidia-smi", "-i", gpu, "-lgc", f"{mhz},{mhz}")
        return f"GPU clock fixed at {mhz} MHz, {words} (nvidia-smi)"
    files = {name: text for name in system.glob(GOVERNORS) if (text := system.read(name))}
    if not files:
        raise DependencyError(
            "this machine shows no CPU governor (cpufreq), as virtual machines do: leave out "
            "--lock-clocks"
        )
    will("governors", files, was=f"CPU governor {', '.join(sorted(set(files.values())))}")
    _write_governors(system, dict.fromkeys(files, "performance"))
    return "CPU governor performance"


def run_tool(*command: str) -> str:
    """Run a tool that changes settings, and give what it printed.

    It has no terminal: it cannot ask whether to restart the board, and Ctrl-C does not reach it.
    """
    line = " ".join(command)
    if shutil.which(command[0]) is None:
        raise DependencyError(
            f"{command[0]} is not there, and `{line}` needs it: it comes with JetPack or NVIDIA's "
            "driver; in a container, bench on the machine itself"
        )
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise DependencyError(f"`{line}` took over {TIMEOUT_S} s: run it by hand") from None
    except OSError as error:
        raise DependencyError(f"`{line}` does not start ({error.strerror})") from None
    if done.returncode != 0:
        last = (f"{done.stdout}\n{done.stderr}".strip().splitlines() or ["no message"])[-1]
        raise DependencyError(f"`{line}` failed ({last}): run it by hand to see why")
    return done.stdout.strip()


def _restore_power_mode(system: System, number: int) -> None:
    if _power_mode(system) == number:
        return
    run_tool("nvpmodel", "-m", str(number))
    if _power_mode(system) != number:
        raise DependencyError(f"the board did not take power mode {number}: restart it")


def _restore_clocks(system: System, stored: str) -> None:
    # It is removed when they are back; a full disk may have kept the record from saying so.
    if not Path(stored).exists():
        return
    run_tool("jetson_clocks", "--restore", stored)
    Path(stored).unlink(missing_ok=True)


def _restore_gpu_clocks(system: System, gpus: dict[str, str]) -> None:
    for gpu in gpus:
        run_tool("nvidia-smi", "-i", gpu, "-rgc")


def _write_governors(system: System, governors: dict[str, str]) -> None:
    for name, governor in governors.items():
        try:
            (system.root / name).write_text(f"{governor}\n")
        except OSError as error:
            why = error.strerror
            raise DependencyError(f"{name} does not take '{governor}' ({why})") from None


# In the order in which they are changed; each takes what was noted.
RESTORE: dict[str, Callable[[System, Any], None]] = {
    "power_mode": _restore_power_mode,
    "clocks": _restore_clocks,
    "gpu_clocks": _restore_gpu_clocks,
    "governors": _write_governors,
}


def _power_mode(system: System) -> int:
    """Number of the mode now."""
    told = system.run("nvpmodel", "-q") or ""
    found = re.search(r"NV Power Mode:[^\n]*\n\s*(\d+)", told)
    if found is None:
        raise DependencyError(
            "nvpmodel -q does not tell the power mode: expected JetPack's nvpmodel; in a "
            "container, bench on the board itself"
        )
    return int(found.group(1))


def _power_modes(system: System) -> dict[int, str]:
    """Number -> name of the board's modes."""
    told = system.read("etc/nvpmodel.conf") or system.run("nvpmodel", "-p", "--verbose") or ""
    found = re.findall(r"^[<\s]*POWER_MODEL:?\s+ID=(\d+)\s+NAME=(\S+)", told, re.MULTILINE)
    return {int(number): name for number, name in found}


def _find_mode(wanted: str, modes: dict[int, str]) -> int | None:
    if wanted.isdecimal():
        number = int(wanted)
        return number if number in modes or not modes else None
    # One board's "30W" is another's "MODE_30W".
    short = {name.upper().removeprefix("MODE_"): number for number, name in modes.items()}
    return short.get(wanted.upper().removeprefix("MODE_"))


def _mode_text(number: int, modes: dict[int, str]) -> str:
    return f"{modes[number]} ({number})" if number in modes else str(number)


def _gpu_clock_mhz(gpu: str) -> tuple[int, str]:
    """The highest clock that the GPU holds for long, where it says so, else its highest.

    The default application clock is that one: boost clocks above it last only while power and
    temperature allow, and a clock that gives way is not fixed.  Also which of them it is.
    """
    query = "--query-gpu=clocks.default_applications.graphics,clocks.max.graphics"
    told = run_tool("nvidia-smi", "-i", gpu, query, "--format=csv,noheader,nounits")
    held, highest = (
        int(found.group()) if (found := re.search(r"\d+", text)) else None
        for text in (told.partition(",")[0], told.partition(",")[2])
    )
    if held is not None and held != highest:
        at_most = f" of at most {highest} MHz" if highest is not None else ""
        return held, f"its default application clock{at_most}"
    if highest is None:
        raise DependencyError(f"nvidia-smi tells no clock ('{told}'): leave out --lock-clocks")
    return highest, "its highest"
