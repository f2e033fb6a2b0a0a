"""`oat-edge doctor`."""

from __future__ import annotations

import dataclasses
import json as json_module
import sys
import textwrap
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from oat_edge.bench.environment import Environment, collect, gpu_facts
from oat_edge.cli.console import output_console, plain_table
from oat_edge.cli.options import JsonFile
from oat_edge.device.jetson import Jetson
from oat_edge.device.nvidia import GpuFacts, nvidia_driver
from oat_edge.device.system import System
from oat_edge.errors import DependencyError, InputError
from oat_edge.files import write_json
from oat_edge.require import EXTRAS
from oat_edge.runtime.cuda import gpu
from oat_edge.runtime.engines import build_target
from oat_edge.runtime.recipe import LIBRARIES

# A recorded tree of a machine has some of them.
TOP_FOLDERS = ("proc", "sys", "etc", "commands")
# distribution -> (module that is imported, what it is for)
PACKAGES = {
    "torch": ("torch", "train, export"),
    "safetensors": ("safetensors", "train, export"),
    "scikit-learn": ("sklearn", "the embedded digits"),
    "onnx": ("onnx", "export"),
    "onnxscript": ("onnxscript", "export"),
    "onnxruntime": ("onnxruntime", "bench on a CPU"),
    "onnxruntime-gpu": ("onnxruntime-gpu", "bench of ONNX files on a GPU"),
    "tensorrt": ("tensorrt", "engines"),
    "tensorrt-rtx": ("tensorrt_rtx", "engines for RTX workstations"),
    "nvidia-ml-py": ("pynvml", "clocks and power of a GPU"),
    "matplotlib": ("matplotlib", "bench --plot, eval --plot"),
    "pyautoattack": ("pyautoattack", "eval: APGD, AutoAttack"),
}
NONE = "–"
WIDTH = 100  # of a table, in columns

SysrootDir = Annotated[
    Path | None,
    typer.Option(
        "--sysroot", metavar="DIR", help="Look at a recorded tree of another machine instead."
    ),
]


def doctor(json: JsonFile = None, sysroot: SysrootDir = None) -> None:
    """Show this machine, what is installed, and what is missing for which command."""
    console = output_console(json)
    if sysroot is not None and not sysroot.is_dir():
        raise InputError(
            f"--sysroot is {sysroot}, which is no folder: expected a recorded tree of a machine "
            "(with its proc, sys and etc)"
        )
    if sysroot is not None and not any((sysroot / name).is_dir() for name in TOP_FOLDERS):
        raise InputError(
            f"--sysroot is {sysroot}, which holds none of {', '.join(TOP_FOLDERS)}: expected a "
            "recorded tree of a machine"
        )
    system = System() if sysroot is None else System(sysroot)
    environment = collect(system=system)
    facts, why = gpu_facts(system, environment.jetson)
    told = () if why is None else (f"gpu: {why}",)
    environment = dataclasses.replace(
        environment, gpu=facts, warnings=(*environment.warnings, *told)
    )
    # Without a driver there is no GPU whose state anyone could miss.
    driver = environment.jetson is None and nvidia_driver(system) is not None
    value: dict[str, Any] = {
        "environment": dataclasses.asdict(environment),
        "power": _power(system, jetson=environment.jetson is not None, gpu=driver),
        # What is installed is of this machine, not of a recorded one.
        "gpu": None if system.recorded else _gpu(),
        "engines": None if system.recorded else {name: _engines(name) for name in LIBRARIES},
        "packages": None if system.recorded else {name: _version(name) for name in PACKAGES},
    }
    if json == "-":
        json_module.dump(value, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    elif json is not None:
        write_json(Path(json), value)
    _show(console, "machine", _machine(environment, value["power"]), told if driver else ())
    if environment.jetson is not None:
        _show(console, "Jetson", _jetson(environment.jetson), environment.jetson.warnings)
    if environment.gpu is not None:
        _show(console, "GPU", _gpu_facts(environment.gpu), environment.gpu.warnings)
    if not system.recorded:
        _show_software(console, value)


def _machine(environment: Environment, power: dict[str, dict[str, str | None]]) -> dict[str, str]:
    device = environment.device
    facts = {
        "device": device.board or device.model or device.machine,
        "cores": str(device.cores or NONE),
        "vector units": ", ".join(device.vector_extensions or ()) or NONE,
        "system": f"{environment.os or NONE}, kernel {environment.kernel}",
        "python": environment.python,
        "governor": environment.power_mode or NONE,
        "load": ", ".join(f"{load:.2f}" for load in environment.load_average or ()) or NONE,
    }
    for part, source in power.items():
        found = f"{source['name']} ({source['scope']})"
        facts[f"power, {part}"] = found if source["name"] else f"none ({source['reason']})"
    if environment.recorded_from is not None:
        facts = {"recorded": f"{environment.recorded_from}, not this machine", **facts}
    return facts


def _jetson(jetson: Jetson) -> dict[str, str]:
    mode, clocks, fan = jetson.power_mode, jetson.gpu_clocks_mhz, jetson.fan
    software = {"L4T": jetson.l4t, "JetPack": jetson.jetpack, "CUDA": jetson.cuda}
    software["TensorRT"] = jetson.tensorrt
    locked = {True: "yes", False: "no (sudo jetson_clocks locks them)", None: NONE}
    fan_parts = () if fan is None else (_number(fan.percent, " %"), fan.profile or NONE)
    return {
        "module": f"{jetson.model or NONE}, {jetson.soc or NONE}",
        "software": ", ".join(f"{name} {version or NONE}" for name, version in software.items()),
        "power mode": NONE if mode is None else f"{mode.name or NONE} ({mode.id})",
        "clocks locked": locked[jetson.clocks_locked],
        "GPU clock": NONE
        if clocks is None
        else f"{clocks.now:g} MHz of {clocks.min:g} to {clocks.max:g}",
        "governors": _pairs(jetson.governors),
        "fan": ", ".join(fan_parts) or NONE,
        "temperatures": _pairs(
            {
                name.removesuffix("-thermal"): f"{value:.1f} °C"
                for name, value in (jetson.temperatures_c or {}).items()
            }
        ),
        "over-current": _pairs(jetson.throttle_counts),
    }


def _gpu_facts(facts: GpuFacts) -> dict[str, str]:
    throttled = facts.throttle_reasons
    memory = f"{_number(facts.memory_clock_mhz)} of {_number(facts.memory_clock_max_mhz, ' MHz')}"
    return {
        "name": f"{facts.name or NONE}, compute capability {facts.compute_capability or NONE}",
        "driver": facts.driver or NONE,
        "clock": f"{_number(facts.clock_mhz)} of {_number(facts.clock_max_mhz, ' MHz')}",
        "memory clock": memory,
        "power limit": _number(facts.power_limit_w, " W"),
        "temperature": _number(facts.temperature_c, " °C"),
        "throttled": NONE if throttled is None else ", ".join(throttled) or "no",
        "persistence": {True: "on", False: "off", None: NONE}[facts.persistence],
    }


def _number(value: float | None, unit: str = "") -> str:
    return NONE if value is None else f"{value:g}{unit}"


def _pairs(values: dict[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (values or {}).items()) or NONE


def _show(
    console: Console, title: str, facts: dict[str, str], warnings: tuple[str, ...] = ()
) -> None:
    """A table of names and facts, none of its lines longer than `WIDTH`."""
    left = max(len(name) for name in (title, *facts))
    table = plain_table(None, [title, ""], left=2)
    for name, fact in facts.items():
        for index, line in enumerate(textwrap.wrap(fact, WIDTH - left - 2) or [""]):
            table.add_row("" if index else name, line)
    console.print(table)
    for warning in warnings:
        for line in textwrap.wrap(f"note: {warning}", WIDTH, subsequent_indent="  "):
            console.print(line)
    console.print()


def _show_software(console: Console, value: dict[str, Any]) -> None:
    """Packages and what is missing for which command."""
    found = value["packages"]
    table = plain_table(None, ["package", "version", "for", "get it"], left=4)
    for name, (module, purpose) in PACKAGES.items():
        extra = "gpu" if module == "onnxruntime-gpu" else EXTRAS[module]
        hint = "" if found[name] else f"pip install 'oat-edge[{extra}]'"
        table.add_row(name, found[name] or "missing", purpose, hint)
    console.print(table)
    console.print()
    console.print(f"GPU: {value['gpu']}")
    for format, state in value["engines"].items():
        console.print(f"{format} engines: {state}")
    if found["onnxruntime"] and found["onnxruntime-gpu"]:
        console.print(
            "warning: onnxruntime and onnxruntime-gpu are both installed and break each other: "
            "uninstall both, then install one",
            style="yellow",
            markup=False,
        )


def _power(system: System, *, jetson: bool, gpu: bool) -> dict[str, dict[str, str | None]]:
    """Where the power of each processor could be read, or why not; a Jetson has one for all."""
    from oat_edge.device.power import power_source

    parts = {"board": True} if jetson else {"CPU": False, "GPU": True} if gpu else {"CPU": False}
    sources = {}
    for part, on_gpu in parts.items():
        source, reason = power_source(system, on_gpu=on_gpu)
        sources[part] = {
            "name": None if source is None else source.name,
            "scope": None if source is None else source.scope,
            "reason": reason,
        }
    return sources


def _gpu() -> str:
    """The GPU, or why there is none."""
    try:
        found = gpu()
    except DependencyError as error:
        return f"none ({error})"
    return f"{found.name}, compute capability {found.compute_capability}, CUDA {found.cuda}"


def _engines(format: str) -> str:
    """Whether engines of a format can be built and run here, or what is missing."""
    try:
        target = build_target(format)
    except DependencyError as error:
        return f"not here ({error})"
    if target.gpu is not None:
        return f"built and run here ({target.library.name})"
    try:
        gpu()
    except DependencyError:
        return f"built here, run elsewhere ({target.library.name}, no GPU)"
    return f"built and run here ({target.library.name})"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
