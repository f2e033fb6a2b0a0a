"""The light install for real on aarch64, in an emulated root (tests/aarch64.py)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oat_edge.bench.report import Report
from oat_edge.bundle import Bundle
from tests import aarch64
from tests.aarch64 import Machine, lacking
from tests.bench.conftest import make_bundle

OAT_EDGE = "venv/bin/oat-edge"
BENCH = ("bench", "--device", "cpu", "--quick")
HEAVY = ("torch", "onnx", "onnxscript", "safetensors", "sklearn", "scipy", "matplotlib")
FIND = f"""
import importlib.util, platform
print(platform.machine(), *(name for name in {HEAVY} if importlib.util.find_spec(name)))
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with aarch64.emulated() as machine:
        aarch64.install(machine)
        yield machine


@pytest.fixture(scope="module", params=["export", "bare"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An exported network with its attack packs; tiny files without any."""
    if request.param == "export":
        exported: Bundle = request.getfixturevalue("tiny_bundle")
        return exported
    return make_bundle(tmp_path_factory.mktemp("bare") / "bare", packs=False)


@pytest.fixture(scope="module")
def here(
    bundle: Bundle, child_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., str]:
    """Runs `oat-edge` on this machine, in a folder that holds a copy of the bundle."""
    folder = tmp_path_factory.mktemp("here")
    shutil.copytree(bundle.path, folder / "bundle")

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "oat_edge", *arguments]
        done = subprocess.run(
            command, cwd=folder, env=child_environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def there(bundle: Bundle, machine: Machine) -> Iterator[Callable[..., str]]:
    """The same on the emulated machine."""
    copy = shutil.copytree(bundle.path, machine.folder / "bundle")
    yield lambda *arguments: machine.output(OAT_EDGE, *arguments, timeout_s=1800)
    shutil.rmtree(copy)


@pytest.fixture(scope="module")
def reports(
    here: Callable[..., str], there: Callable[..., str], machine: Machine
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a bench of one bundle: on this machine, on the emulated one."""
    return (
        json.loads(here(*BENCH, "--bundle", "bundle", "--json", "-")),
        json.loads(there(*BENCH, "--bundle", "bundle", "--json", "-")),
    )


@pytest.mark.slow
def test_the_install_is_light(machine):
    assert machine.output("venv/bin/python", "-c", FIND).split() == ["aarch64"]
    assert machine.output("uname", "-m").strip() == "aarch64"


@pytest.mark.slow
def test_doctor_names_the_machine_and_what_it_has(machine):
    said = json.loads(machine.output(OAT_EDGE, "doctor", "--json", "-"))
    version = machine.output("venv/bin/python", "-V").removeprefix("Python ").strip()
    assert said["environment"]["device"]["machine"] == "aarch64"
    assert said["environment"]["python"] == version
    assert said["packages"]["torch"] is None and said["packages"]["onnxruntime"] is not None
    assert version in machine.output(OAT_EDGE, "doctor")


@pytest.mark.slow
def test_inspect_says_there_what_it_says_here(bundle, here, there):
    said = there("inspect", "bundle")
    assert said == here("inspect", "bundle")
    for artifact in bundle.artifacts:
        assert artifact.file in said and f"{artifact.sha256[:12]} ok" in said


@pytest.mark.slow
def test_bench_counts_there_what_it_counts_here(bundle, reports):
    """Figures of the images are the same to the last one; times are another matter."""

    def counted(report: dict[str, Any]) -> dict[tuple[object, ...], tuple[object, ...]]:
        names = ("sha256", "precision", "standard_accuracy", "robust_accuracy", "num_samples")
        return {
            (row["artifact"], row["lambda"], row["batch"]): tuple(row[name] for name in names)
            for row in report["rows"]
        }

    here, there = reports
    assert there["environment"]["device"]["machine"] == "aarch64"
    assert there["environment"]["library_versions"].keys() == {"oat-edge", "numpy", "onnxruntime"}
    assert counted(there) == counted(here)
    assert there["transfer"] == here["transfer"]
    shares = {row["standard_accuracy"] for row in there["rows"]}
    if bundle.of_format("attacks"):
        assert None not in shares and there["transfer"]
        assert any(row["robust_accuracy"]["worst"] < row["standard_accuracy"]
                   for row in there["rows"])  # fmt: skip
    else:
        assert shares == {None}


@pytest.mark.slow
def test_every_time_there_is_a_positive_number(reports, machine):
    _, there = reports
    for row in there["rows"]:
        times = row["latency_ms"]
        assert all(times[name] > 0 for name in ("mean", "p50", "min", "max"))
        assert all(times[name] is None or times[name] > 0 for name in ("p90", "p95", "p99"))
        assert times["n"] >= 100


@pytest.mark.slow
def test_the_report_from_there_is_read_here(reports, machine):
    _, there = reports
    report = Report.load(machine.folder / "bundle/report.json")
    assert report.to_json() == there
    with np.load(machine.folder / "bundle" / str(report.samples_file)) as arrays:
        times = {name: arrays[name] for name in arrays.files if name.endswith("|latency_ns")}
    assert len(times) == len({(row.artifact, row.batch) for row in report.rows})
    assert all((array > 0).all() for array in times.values())


@pytest.mark.slow
def test_a_killed_command_leaves_no_mount_and_no_process(machine):
    ready = machine.folder / "ready"
    script = "import pathlib, time; pathlib.Path('ready').touch(); time.sleep(600)"
    command = machine.command("venv/bin/python", "-c", script)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        wait_for(ready.exists)
        assert script in command_lines()
        running.send_signal(signal.SIGKILL)
    wait_for(lambda: script not in command_lines())
    assert str(machine.root) not in Path("/proc/mounts").read_text()


@pytest.mark.slow
def test_a_program_that_crashes_ends(machine):
    done = machine.run("venv/bin/python", "-c", "import os; os.abort()", timeout_s=60)
    assert done.returncode == 128 + signal.SIGABRT


def wait_for(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("waited for a minute in vain")


def command_lines() -> str:
    """Of all processes, but this one."""
    files = Path("/proc").glob("[0-9]*/cmdline")
    found = []
    for file in files:
        if file.parent.name != str(os.getpid()):
            try:
                found.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:  # it has ended meanwhile
                continue
    return "\n".join(found)


@pytest.fixture
def equipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The /proc of an x86-64 machine that has root rights, the programs and the handler."""
    monkeypatch.delenv(aarch64.VARIABLE, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(aarch64, "APART", ("env",))
    binfmt = tmp_path / "sys/fs/binfmt_misc"
    binfmt.mkdir(parents=True)
    (binfmt / "register").touch()
    (binfmt / "qemu-aarch64").write_text("enabled\ninterpreter /usr/bin/qemu-aarch64\nflags: PF\n")
    return tmp_path


def test_nothing_is_lacking_where_all_is_there(equipped):
    assert lacking(equipped) is None


def test_what_is_lacking_names_the_command_that_mends_it(equipped, monkeypatch):
    handler = equipped / "sys/fs/binfmt_misc/qemu-aarch64"
    monkeypatch.setattr(aarch64, "APART", ("sh", "-c", "echo refused >&2; exit 1"))
    assert "refused" in lacking(equipped) and "--privileged" in lacking(equipped)
    handler.write_text("enabled\nflags: P\n")
    assert "no flag F" in lacking(equipped) and "qemu-user-static" in lacking(equipped)
    handler.write_text("disabled\n")
    assert lacking(equipped).endswith(": update-binfmts --enable qemu-aarch64")
    handler.unlink()
    assert lacking(equipped).endswith(": update-binfmts --enable qemu-aarch64")
    monkeypatch.setattr("shutil.which", lambda name: None if "qemu" in name else name)
    assert "qemu-user-static" in lacking(equipped)
    (equipped / "sys/fs/binfmt_misc/register").unlink()
    assert "mount -t binfmt_misc binfmt_misc" in lacking(equipped)
    monkeypatch.setattr("shutil.which", lambda name: None if "bootstrap" in name else name)
    assert lacking(equipped).startswith("debootstrap not installed: apt-get install ")
    monkeypatch.setenv(aarch64.VARIABLE, "/somewhere")
    assert "debootstrap" not in lacking(equipped)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "sudo" in lacking(equipped)
