"""Cells on the command line: listed, stopped, resumed, failed."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oat_edge.bench import cells
from oat_edge.bench.config import BenchConfig
from oat_edge.bench.results import Results
from tests.cli.conftest import REAL_QUICK
from tests.cli.test_bench import QUICK, check_refused

pytestmark = pytest.mark.usefixtures("frozen_heap")

MAIN = "from oat_edge.cli import main; main()"
TREES = Path(__file__).parents[1] / "device/trees"


@pytest.fixture
def folder(tiny_bundle, tmp_path):
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


def test_a_dry_run_lists_every_cell_and_writes_nothing(folder, main):
    before = sorted(folder.iterdir())
    ended = main("bench", folder, "--dry-run", "--width", "0.5", "--batch", "1,2", "--json", "-")
    assert ended.code == 0 and sorted(folder.iterdir()) == before
    plan = json.loads(ended.out)
    assert plan["schema"] == "oat-edge/bench-plan/1"
    latency = [(one["artifact"], one["batch"]) for one in plan["cells"] if one["kind"] == "latency"]
    files = {name for name, _ in latency}
    assert len(files) == 2 and all(name.startswith("w0.50") for name in files)
    assert sorted(latency) == sorted((name, batch) for name in files for batch in (1, 2))
    assert not any(one["done"] for one in plan["cells"])
    assert f"{len(plan['cells'])} of {len(plan['cells'])} cells to measure" in ended.err
    assert max(map(len, ended.err.splitlines())) <= 100


def test_a_dry_run_needs_no_device(folder, main):
    ended = main("bench", folder, "--dry-run", "--device", "cuda", "--format", "onnx")
    assert ended.code == 0 and "latency" in ended.out


def run(folder, *options):
    code = f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); {MAIN}"
    return subprocess.Popen(
        [sys.executable, "-c", code, "bench", str(folder), *map(str, QUICK), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder.parent,
    )


def finished(folder):
    """Parts and later cells in results.jsonl."""
    records = Results.peek(folder / "results.jsonl").records
    kinds = ("part", "throughput", "accuracy", "memory")
    return [
        (one["kind"], one["file"], one["batch"], one.get("round"))
        for one in records
        if one["kind"] in kinds
    ]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow)],
)
def test_a_stopped_bench_goes_on_with_what_is_left(folder, main, monkeypatch, number, code):
    monkeypatch.setattr(BenchConfig, "quick", REAL_QUICK)  # as in the other process
    process = run(folder)
    while len(finished(folder)) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err
    assert ("--resume goes on" in out) == (number == signal.SIGINT)
    assert not (folder / "report.json").exists()
    before = finished(folder)
    listed = main("bench", folder, *QUICK, "--resume", "--dry-run")
    assert listed.code == 0 and re.search(r"\d turns done", listed.out), listed
    ended = main("bench", folder, *QUICK, "--resume")
    assert ended.code == 0, ended.err
    after = finished(folder)
    assert after[: len(before)] == before and len(set(after)) == len(after)
    assert "the bench was resumed" in ended.out
    again = main("bench", folder, *QUICK, "--resume", "--dry-run")
    assert re.search(r"^0 of \d+ cells to measure", again.out, re.MULTILINE)


def test_a_failed_cell_is_exit_8_with_the_report_written(folder, main, monkeypatch):
    fault = {"in": "accuracy", "do": "outcomes", "how": "kill"}
    monkeypatch.setattr(cells, "PROCESS", "tests.bench.faulty")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.setenv("OAT_EDGE_FAULT", json.dumps(fault))
    ended = main("bench", folder, *QUICK)
    (line,) = ended.err.splitlines()
    assert ended.code == 8 and "accuracy w1.00" in line and "--resume" in line
    report = json.loads((folder / "report.json").read_text())
    assert list(report["failures"]) and all("SIGKILL" in why for why in report["failures"].values())
    assert all(row["latency_ms"] and row["standard_accuracy"] is None for row in report["rows"])
    monkeypatch.setattr(cells, "PROCESS", "oat_edge.bench.cell_process")
    times = [row["latency_ms"] for row in report["rows"]]
    assert main("bench", folder, *QUICK, "--resume").code == 0
    report = json.loads((folder / "report.json").read_text())
    assert [row["latency_ms"] for row in report["rows"]] == times and report["failures"] == {}
    assert all(row["standard_accuracy"] is not None for row in report["rows"])
    other = main("bench", folder, *QUICK, "--resume", "--seed", 1)
    check_refused(other, "another settings.seed: it was 0, is 1", "leave out --resume")


def test_the_cpu_of_a_jetson_is_benched_where_the_board_is_one(folder, main):
    """The board is a written tree, so the report says that it is not this machine."""
    options = ("--device", "jetson", "--processor", "cpu", "--sysroot", TREES / "agx-orin")
    ended = main("bench", folder, *QUICK, *options, "--json", "-")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    environment = report["environment"]
    assert "AGX Orin" in environment["device"]["board"] and environment["jetson"]["l4t"]
    assert any("recorded" in text for text in environment["warnings"])
    assert {row["backend"] for row in report["rows"]} == {"onnxruntime-cpu"}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--processor", "gpu"), ("processor is gpu and device cpu",)),
        (("--processor", "dla", "--device", "jetson"), ("processor is 'dla'", "cpu or gpu")),
        (("--timeout", "0"), ("timeout_s is 0",)),
        (("--timeout", "nan"), ("timeout_s is nan",)),
        (("--device", "tpu"), ("'tpu'", "cpu, cuda, jetson")),
        (("--host", "-oProxyCommand=touch x"), ("-oProxyCommand",)),
        (("--bootstrap",), ("--bootstrap installs on another machine", "--host")),
    ],
)
def test_what_makes_no_sense_is_one_line(folder, main, options, parts):
    if "--device" in options and "jetson" in options:
        options = (*options, "--sysroot", TREES / "orin-nano")
    check_refused(main("bench", folder, *QUICK, *options), *parts)
    assert not (folder / "results.jsonl").exists() and not Path("x").exists()


def test_clocks_need_root_or_a_machine_of_its_own(folder, main):
    ended = main(
        "bench", folder, *QUICK, "--lock-clocks", "--device", "jetson", "--processor", "cpu",
        "--sysroot", TREES / "orin-nano",
    )  # fmt: skip
    check_refused(ended, "recorded")
