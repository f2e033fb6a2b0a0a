"""`bench --host`, `--device NAME` and `--hosts` against a real SSH server, typed as a user does."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from oat_edge.bench.report import Report
from tests.cli.test_bench_cells import TREES
from tests.remote.conftest import bundle, device, template

# Real fixtures of the remote tests: a bundle of tiny networks, and a "device" on this machine.
assert bundle and device and template

QUICK = ("--quick", "--batch", 1, "--width", 1, "--lambda", "0,1", "--no-transfer")
ORIN = TREES / "orin-nano"


@pytest.fixture
def orin(device, main, tmp_path, monkeypatch):
    """The device under a name, as its user would give it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    ended = main("devices", "add", "orin", device.host, "--python", sys.executable)
    assert ended.code == 0 and "added orin" in ended.out, ended.err
    return device


def add_box(main, orin):
    """The same device under another name, as one whose CPU is measured."""
    cpu = ("--device", "cpu", "--python", sys.executable)
    assert main("devices", "add", "box", orin.host, *cpu).code == 0


def points(report):
    """All of a report that does not depend on time."""
    keys = ("artifact", "sha256", "format", "backend", "width", "lambda", "precision", "batch")
    more = ("standard_accuracy", "robust_accuracy", "num_samples")
    return [{key: row[key] for key in (*keys, *more)} for row in report["rows"]]


def test_a_jetson_elsewhere_is_benched_as_one_that_is_here(orin, bundle, main):
    """The board is a written tree at both ends, and its CPU runs: the rest is real."""
    jetson = ("--device", "jetson", "--processor", "cpu", "--sysroot", ORIN)
    local = main("bench", bundle.path, *QUICK, *jetson, "--json", "-")
    assert local.code == 0, local.err
    ended = main("bench", bundle.path, *QUICK, *jetson, "--host", "orin", "--json", "-")
    assert ended.code == 0, ended.err
    assert "orin: sent 7 files" in ended.err and "report-orin.json" in ended.err
    here, there = json.loads(local.out), json.loads(ended.out)
    assert points(here) == points(there) and here["settings"].keys() == there["settings"].keys()
    for report in (here, there):
        assert report["environment"]["jetson"]["model"].startswith("NVIDIA Jetson Orin Nano")
        assert all(row["latency_ms"]["p50"] > 0 for row in report["rows"])
    assert Report.load(bundle.path / "report-orin.json").to_json() == there
    again = main("bench", bundle.path, *QUICK, *jetson, "--host", "orin")
    assert again.code == 0 and "orin: sent 0 files, 0.0 MB; 7 were there" in again.out


def test_a_board_that_is_none_is_told_by_the_board(orin, bundle, main, tmp_path):
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    ended = main(
        "bench", bundle.path, *QUICK, "--device", "jetson", "--host", "orin", "--sysroot", nothing
    )
    (line,) = ended.err.splitlines()
    assert ended.code == 3 and "device is 'jetson': this is none" in line and "127.0.0.1" in line


def test_a_name_is_enough_and_files_come_where_they_were_asked_for(orin, bundle, main, tmp_path):
    add_box(main, orin)
    ended = main(
        "bench", bundle.path, *QUICK, "--device", "box", "--json", "out/r.json", "--csv", "r.csv"
    )
    assert ended.code == 0, ended.err
    report = Report.load(tmp_path / "here/out/r.json")
    assert (tmp_path / "here/out" / report.samples_file).is_file()
    with (tmp_path / "here/r.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(report.rows)


def test_a_fleet_is_one_report_and_one_table_whatever_fails(orin, bundle, main, tmp_path):
    add_box(main, orin)
    hosts = tmp_path / "fleet.txt"
    hosts.write_text("box  # the one that is there\nssh://nobody@127.0.0.1:1\n")
    ended = main("bench", bundle.path, *QUICK, "--hosts", hosts, "--json", "-", "--csv", "all.csv")
    (line,) = [text for text in ended.err.splitlines() if text.startswith("error: ")]
    assert ended.code == 3 and "1 of 2 devices failed" in line and "127.0.0.1" in line
    fleet = json.loads(ended.out)
    assert fleet["schema"] == "oat-edge/fleet/1"
    there, gone = fleet["targets"]
    assert there["name"] == "box" and there["report"]["rows"] and there["error"] is None
    assert gone["report"] is None and gone["error"]["exit_code"] == 3
    assert json.loads((bundle.path / "report-fleet.json").read_text()) == fleet
    with (tmp_path / "here/all.csv").open(newline="") as file:
        assert {row["device"] for row in csv.DictReader(file)} == {"box"}
    assert "Device" in ended.err and "failed" in ended.err


def test_a_dry_run_goes_nowhere(orin, bundle, main):
    ended = main("bench", bundle.path, *QUICK, "--device", "orin", "--dry-run", "--format", "onnx")
    assert ended.code == 0 and "cells to measure" in ended.out
    assert not orin.cache.exists()


def test_a_dry_run_does_not_take_what_was_done_here_for_done_there(orin, bundle, main):
    assert main("bench", bundle.path, *QUICK).code == 0
    assert main("bench", bundle.path, *QUICK, "--resume", "--dry-run").out.count("done") > 3
    options = ("--host", orin.host, "--host", "orin", "--format", "onnx", "--processor", "cpu")
    ended = main("bench", bundle.path, *QUICK, "--resume", "--dry-run", *options, "--json", "-")
    assert ended.code == 0, ended.err
    cells = json.loads(ended.out)["cells"]
    assert len({one["target"] for one in cells}) == 2 and not any(one["done"] for one in cells)
