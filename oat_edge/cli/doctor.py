"""`oat-edge doctor`."""

from __future__ import annotations

import dataclasses
import json as json_module
import sys
from importlib import metadata
from pathlib import Path

from oat_edge.bench.environment import collect
from oat_edge.cli.console import output_console, plain_table
from oat_edge.cli.options import JsonFile
from oat_edge.errors import DependencyError
from oat_edge.files import write_json
from oat_edge.require import EXTRAS
from oat_edge.runtime.cuda import gpu
from oat_edge.runtime.engines import build_target
from oat_edge.runtime.recipe import LIBRARIES

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
    "matplotlib": ("matplotlib", "bench --plot, eval --plot"),
    "pyautoattack": ("pyautoattack", "eval: APGD, AutoAttack"),
}


def doctor(json: JsonFile = None) -> None:
    """Show this machine, what is installed, and what is missing for which command."""
    console = output_console(json)
    environment = collect()
    engines = {format: _engines(format) for format in LIBRARIES}
    found = {name: _version(name) for name in PACKAGES}
    value = {
        "environment": dataclasses.asdict(environment),
        "gpu": _gpu(),
        "engines": engines,
        "packages": found,
    }
    if json == "-":
        json_module.dump(value, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    elif json is not None:
        write_json(Path(json), value)
    device = environment.device
    facts = {
        "device": device.board or device.model or device.machine,
        "cores": str(device.cores),
        "vector units": ", ".join(device.vector_extensions or ()) or "–",
        "system": f"{environment.os or '–'}, kernel {environment.kernel}",
        "python": environment.python,
        "governor": environment.power_mode or "–",
        "load": ", ".join(f"{load:.2f}" for load in environment.load_average or ()) or "–",
    }
    table = plain_table(None, ["machine", ""], left=2)
    for name, fact in facts.items():
        table.add_row(name, fact)
    console.print(table)
    console.print()
    table = plain_table(None, ["package", "version", "for", "get it"], left=4)
    for name, (module, purpose) in PACKAGES.items():
        extra = "gpu" if module == "onnxruntime-gpu" else EXTRAS[module]
        hint = "" if found[name] else f"pip install 'oat-edge[{extra}]'"
        table.add_row(name, found[name] or "missing", purpose, hint)
    console.print(table)
    console.print()
    console.print(f"GPU: {_gpu()}")
    for format, state in engines.items():
        console.print(f"{format} engines: {state}")
    if found["onnxruntime"] and _version("onnxruntime-gpu"):
        console.print(
            "warning: onnxruntime and onnxruntime-gpu are both installed and break each other: "
            "uninstall both, then install one",
            style="yellow",
            markup=False,
        )


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
