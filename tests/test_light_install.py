"""On a device there is numpy, typer and rich: nothing else may be needed to look at a bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import oat_edge

HEAVY = (
    "torch", "onnx", "onnxscript", "onnxruntime", "tensorrt", "tensorrt_rtx",
    "matplotlib", "sklearn", "scipy", "safetensors", "pooch", "PIL", "pyautoattack", "pynvml",
    "tomlkit",
)  # fmt: skip

HIDE = f"""
import json, sys
for name in {HEAVY}:
    sys.modules[name] = None
"""

# Runs the command line several times in one process, and reports what each run gave.
COMMANDS = (
    HIDE
    + """
import contextlib, io
from oat_edge.cli import app, main
from oat_edge.cli import console

def run(*arguments):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["oat-edge", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    return {"command": arguments, "code": code, "out": out.getvalue(), "err": err.getvalue()}

print(json.dumps([run(*arguments) for arguments in json.loads(sys.argv[1])]))
"""
)

IMPORTS = (
    HIDE
    + """
import importlib
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(sorted(name.partition(".")[0] for name, module in sys.modules.items() if module))
"""
)


def python(code: str, argument: object, environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(argument)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def light_modules() -> list[str]:
    """All modules but those of the folders that import torch at the top."""
    root = Path(oat_edge.__file__).parent
    names = ["oat_edge.train.recipes"]
    for folder in (root, root / "exporters", root / "calib"):
        for file in folder.rglob("*.py"):
            parts = file.relative_to(root).with_suffix("").parts
            if parts[0] not in ("nn", "attacks", "train", "__main__"):
                names.append(".".join(("oat_edge", *parts)).removesuffix(".__init__"))
    return sorted(set(names))


def test_every_light_module_imports_without_a_heavy_package(child_environment, tmp_path):
    names = light_modules()
    assert {"oat_edge.cli.bench", "oat_edge.exporters.to_onnx"} < set(names)
    loaded = python(IMPORTS, names, child_environment, tmp_path)
    assert "'oat_edge'" in loaded and not any(f"'{name}'" in loaded for name in HEAVY)


COMMAND_NAMES = (
    "train", "eval", "export", "bench", "calibrate", "compare", "inspect", "doctor", "demo",
    "devices",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny_bundle, tiny_run, child_environment, tmp_path_factory):
    commands = {
        "help": ["--help"],
        **{f"help of {name}": [name, "--help"] for name in COMMAND_NAMES},
        "inspect bundle": ["inspect", str(tiny_bundle.path)],
        "inspect run": ["inspect", str(tiny_run)],
        "doctor": ["doctor"],
        "doctor json": ["doctor", "--json", "-"],
        "bench": ["bench", "--bundle", str(tiny_bundle.path), "--quick"],
        "eval": ["eval", str(tiny_bundle.path)],
        "eval run": ["eval", str(tiny_run)],
        "train": ["train", "--epochs", "1"],
        "export": ["export", "--checkpoint", str(tiny_run)],
        "demo": ["demo"],
    }
    folder = tmp_path_factory.mktemp("light")
    results = json.loads(python(COMMANDS, [*commands.values()], child_environment, folder))
    assert list(folder.iterdir()) == []
    return dict(zip(commands, results, strict=True))


def test_help_needs_nothing(runs):
    pages = [one for name, one in runs.items() if name.startswith("help")]
    assert len(pages) == 1 + len(COMMAND_NAMES)
    for page in pages:
        assert page["code"] == 0 and page["out"].startswith("Usage: ") and page["err"] == ""


def test_inspect_checks_a_bundle_and_a_run(runs, tiny_bundle):
    bundle, run = runs["inspect bundle"], runs["inspect run"]
    assert bundle["code"] == run["code"] == 0
    for one in (bundle, run):
        assert "resnet8, image 1x8x8, 10 classes" in one["out"]
    for artifact in tiny_bundle.artifacts:
        assert artifact.file in bundle["out"] and f"{artifact.sha256[:12]} ok" in bundle["out"]


def test_doctor_says_what_this_machine_is(runs):
    assert runs["doctor"]["code"] == 0 and "python" in runs["doctor"]["out"]
    value = json.loads(runs["doctor json"]["out"])
    assert set(value) == {"environment", "gpu", "power", "engines", "packages"}


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("bench", "onnxruntime", "cpu"),
        ("eval", "onnxruntime", "cpu"),
        ("eval run", "torch", "train"),
        ("train", "torch", "train"),
        ("export", "torch", "train"),
        ("demo", "torch", "train"),
    ],
)
def test_what_needs_a_package_says_what_to_install(command, package, extra, runs):
    run = runs[command]
    assert run["code"] == 3
    (line,) = run["err"].splitlines()
    assert line.startswith(f"error: {package} is not installed, but ")
    assert line.endswith(f"pip install 'oat-edge[{extra}]'")


WITH_ENGINES = COMMANDS.replace("json, sys\n", "json, sys, onnxruntime\n", 1).replace(
    "sys.modules[name] = None", "sys.modules.setdefault(name, None)", 1
)


def test_with_onnxruntime_alone_a_bundle_is_evaluated(tiny_bundle, child_environment, tmp_path):
    """On the device: packs replayed, Square run, no torch and no data set."""
    folder = Path(shutil.copytree(tiny_bundle.path, tmp_path / "b"))
    command = ["eval", str(folder), "--samples", "4", "--queries", "3", "--json", "-"]
    (run,) = json.loads(python(WITH_ENGINES, [command], child_environment, tmp_path))
    assert run["code"] == 0, run["err"]
    rows = json.loads(run["out"])["rows"]
    assert len(rows) == 14 and all("square" in row["robust_accuracy"] for row in rows)
