"""Whole benches on a device over a real SSH connection."""

from __future__ import annotations

import _thread
import csv
import dataclasses
import json
import shutil
import threading

import numpy as np
import pytest

from oat_edge.bench.report import Report
from oat_edge.bench.request import run_request
from oat_edge.bundle import Bundle
from oat_edge.errors import DependencyError, InputError
from oat_edge.remote.fleet import FleetResult, TargetResult, bench_on
from oat_edge.remote.ssh import check_host
from oat_edge.remote.targets import Target
from tests.remote.conftest import REQUEST, target_of


def report_of(result):
    result.check()
    (one,) = result.results
    return one.report


def shape(value):
    """The structure of a JSON value: names, and kinds of values."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else type(value).__name__


def test_a_remote_bench_reports_as_a_local_one_and_sends_its_files_once(
    device, bundle, told, tmp_path
):
    target = target_of(device)
    report = report_of(bench_on([target], bundle, REQUEST, say=told.say))
    assert "orin: sent 7 files" in told and "0 were there" in told
    (tmp_path / "local").mkdir()
    local = run_request(REQUEST, bundle, folder=tmp_path / "local")

    assert shape(report.to_json()["rows"]) == shape(local.to_json()["rows"])
    assert set(report.to_json()) == set(local.to_json())
    for mine, theirs in zip(local.rows, report.rows, strict=True):
        for field in ("artifact", "sha256", "lam", "batch", "num_samples", "pareto",
                      "standard_accuracy", "robust_accuracy"):  # fmt: skip
            assert getattr(mine, field) == getattr(theirs, field)
    assert report == Report.load(bundle.path / "report-orin.json")
    assert report.samples_file == "report-orin-samples.npz"
    with np.load(bundle.path / report.samples_file) as samples:
        assert sum(key.endswith("latency_ns") for key in samples) == 1
    assert (bundle.path / "results-orin.jsonl").is_file()
    assert not (bundle.path / "report.json").exists()
    assert not list(bundle.path.rglob(".writing-*")) and not list(device.cache.rglob("*.part"))
    assert device.jobs() == []

    told.texts.clear()
    again = report_of(bench_on([target], bundle, REQUEST, say=told.say))
    assert "sent 0 files, 0.0 MB; 7 were there" in told
    assert again.environment.timestamp_utc > report.environment.timestamp_utc


def test_two_clients_at_once_share_one_run(device, bundle, template, tmp_path):
    other = Bundle.open(shutil.copytree(template.path, tmp_path / "other"))
    results = {}

    def work(name, one):
        results[name] = bench_on([target_of(device)], one, REQUEST)

    threads = [threading.Thread(target=work, args=pair) for pair in (("a", bundle), ("b", other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = (report_of(results[name]) for name in "ab")
    assert first == second and device.jobs() == []


def test_a_failing_host_does_not_stop_the_others(device, bundle, told, tmp_path):
    good = target_of(device)
    bad = Target(name="away", host=check_host("ssh://nobody@127.0.0.1:9"), device="cpu")
    result = bench_on([bad, good], bundle, REQUEST, say=told.say)
    assert [one.report is None for one in result.results] == [True, False]
    path = result.save(bundle.path)
    merged = json.loads(path.read_text())
    assert path.name == "report-fleet.json" and merged["schema"] == "oat-edge/fleet/1"
    assert [one["name"] for one in merged["targets"]] == ["away", "orin"]
    assert merged["targets"][0]["report"] is None
    assert merged["targets"][0]["error"]["exit_code"] == 3
    assert Report.from_json(merged["targets"][1]["report"]) == result.results[1].report
    result.write_csv(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert next(iter(rows[0])) == "device" and {row["device"] for row in rows} == {"orin"}
    assert len(rows) == 3
    with pytest.raises(DependencyError, match="1 of 2 devices failed: away: "):
        result.check()

    # A fleet of which nothing came replaces no report; where there is none, it is one.
    lost = TargetResult(bad, None, DependencyError("away"))
    assert FleetResult((lost, lost)).save(bundle.path) is None
    assert json.loads(path.read_text()) == merged
    assert FleetResult((lost, lost)).save(tmp_path) == tmp_path / "report-fleet.json"


def test_what_a_killed_command_left_goes_and_what_others_write_stays(device, bundle):
    names = [".writing-report-orin-a1_b2c3d.json", ".writing-results-orin-01234567.jsonl",
             ".writing-report-01234567.json", ".writing-report-orin-2-01234567.json"]  # fmt: skip
    for name in names:
        (bundle.path / name).write_text("half")
    bench_on([target_of(device)], bundle, REQUEST).check()
    assert sorted(path.name for path in bundle.path.glob(".writing-*")) == sorted(names[2:])


def test_ctrl_c_stops_the_bench_there_and_resume_goes_on(device, bundle, told):
    interrupted = []

    def progress(name, done_s, total_s, label):
        if label.startswith("latency w1.00") and not interrupted:
            interrupted.append(label)
            _thread.interrupt_main()

    config = dataclasses.replace(REQUEST.config, min_seconds=2.5)
    request = dataclasses.replace(REQUEST, config=config)
    with pytest.raises(KeyboardInterrupt):
        bench_on([target_of(device)], bundle, request, progress=progress, say=told.say)
    assert interrupted and "stopping the bench there" in told and device.jobs() == []
    (end,) = device.cache.glob("jobs/*/end.json")
    assert json.loads(end.read_text()) == {"interrupted": True}
    measured = (end.parent / "result" / "results.jsonl").read_text()

    again = dataclasses.replace(request, resume=True)
    report = report_of(bench_on([target_of(device)], bundle, again, say=told.say))
    assert len(report.rows) == 3 and "found the bench" not in told
    results = (bundle.path / "results-orin.jsonl").read_text()
    assert results.startswith(measured) and results.count('"kind": "session"') == 2
    assert device.jobs() == []


def test_an_error_of_the_bench_comes_back_as_it_is(device, bundle):
    request = dataclasses.replace(REQUEST, width="0.25")
    (one,) = bench_on([target_of(device)], bundle, request).results
    assert type(one.error) is InputError and str(one.error).startswith(device.host)
    assert "0.25" in str(one.error)
