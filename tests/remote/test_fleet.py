"""Whole benches on a device over a real SSH connection."""

from __future__ import annotations

import _thread
import csv
import dataclasses
import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from oat_edge.bench.report import Report
from oat_edge.bench.request import run_request
from oat_edge.bundle import Bundle, save_manifest
from oat_edge.errors import DependencyError, InputError
from oat_edge.files import sha256_file
from oat_edge.remote.bench import Parcel, send_missing
from oat_edge.remote.client import Session
from oat_edge.remote.fetch import fetch_file
from oat_edge.remote.fleet import FleetResult, TargetResult, bench_on
from oat_edge.remote.ssh import LostError, check_host
from oat_edge.remote.targets import Target
from tests.remote.conftest import REQUEST, target_of

# Long enough to be cut off in the middle.
LONGER = dataclasses.replace(
    REQUEST, config=dataclasses.replace(REQUEST.config, min_seconds=1.5, rounds=10)
)


def report_of(result):
    result.check()
    (one,) = result.results
    return one.report


def shape(value):
    """The structure of a JSON value: names, and kinds of values."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else type(value).__name__


def artifact_bytes(bundle):
    return sum((bundle.path / one.file).stat().st_size for one in bundle.artifacts)


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


@pytest.fixture
def big(bundle):
    """The bundle with a file that takes several messages to send."""
    path = bundle.path / "attacks-w1.00-pgd20.npz"
    path.write_bytes(path.read_bytes() + np.random.default_rng(0).bytes(5_000_000))
    artifacts = tuple(
        dataclasses.replace(one, sha256=sha256_file(path)) if one.file == path.name else one
        for one in bundle.artifacts
    )
    save_manifest(dataclasses.replace(bundle, artifacts=artifacts))
    return Bundle.open(bundle.path)


def test_a_cut_while_sending_goes_on_where_it_was(device, proxy, bundle, big, told):
    target = target_of(device, port=proxy.port)
    proxy.cut_after["up"] = 3_000_000
    session = Session(target.host, python=target.python, say=told.say)
    session.open()
    paths = Parcel.of(big).paths
    sent, here, num_bytes = send_missing(session, paths, told.say)
    session.close()
    assert proxy.cuts == 1 and "connection lost" in told
    assert (sent, here) == (7, 0)
    # What had arrived was not sent again: at most the message that was cut, of 1 MiB.
    size = sum(path.stat().st_size for path in paths.values())
    assert size <= num_bytes and proxy.passed["up"] < size + 1_300_000
    for sha256 in paths:
        assert sha256_file(device.cache / "blobs" / sha256) == sha256
    assert not list(device.cache.rglob("*.part"))


def test_a_command_that_was_killed_while_sending_leaves_a_part_for_the_next(
    device, proxy, big, told
):
    paths = Parcel.of(big).paths
    target = target_of(device, port=proxy.port)
    session = Session(target.host, python=target.python, patience_s=0.0)
    session.open()
    proxy.cut_after["up"], proxy.refuse = proxy.passed["up"] + 3_500_000, True
    with pytest.raises(LostError, match="finds the bench again"):
        send_missing(session, paths, told.say)
    session.close()
    (part,) = device.cache.glob("blobs/*.part")
    arrived = part.stat().st_size
    assert arrived >= 1_000_000 and not (device.cache / "blobs" / part.stem).exists()
    assert not (device.cache / "bundles").exists()

    proxy.refuse = False
    session.open()
    _, _, num_bytes = send_missing(session, paths, told.say)
    session.close()
    assert num_bytes <= sum(path.stat().st_size for path in paths.values()) - arrived
    assert sha256_file(device.cache / "blobs" / part.stem) == part.stem


def test_a_connection_cut_during_the_run_costs_nothing(device, proxy, bundle, told):
    jobs = []

    def cut(name, done_s, total_s, label):
        if not jobs:
            jobs.extend(device.jobs())
            proxy.cut()

    target = target_of(device, port=proxy.port)
    report = report_of(bench_on([target], bundle, LONGER, progress=cut, say=told.say))
    assert proxy.cuts == 1 and "connection lost" in told and proxy.connections == 2
    assert len(report.rows) == 3 and len(jobs) == 1
    assert "starting it again" not in told and "found the bench" not in told
    assert not list(bundle.path.rglob(".writing-*")) and device.jobs() == []


def test_fetching_goes_on_where_it_was_cut(device, proxy, bundle, told, tmp_path):
    job = device.cache / "jobs" / ("a" * 32)
    (job / "result").mkdir(parents=True)
    content = np.random.default_rng(1).bytes(4_000_000)
    (job / "result" / "report-samples.npz").write_bytes(content)
    target = target_of(device, port=proxy.port)
    session = Session(target.host, python=target.python, say=told.say)
    session.open()
    (file,) = session.call("files", job="a" * 32, engines=False, files={})[0]["files"]
    proxy.cut_after["down"] = proxy.passed["down"] + 2_500_000
    fetch_file(session, "a" * 32, file, tmp_path / "samples.npz")
    session.close()
    assert proxy.cuts == 1 and (tmp_path / "samples.npz").read_bytes() == content
    assert proxy.passed["down"] < 4_000_000 + 1_300_000


def test_a_run_that_finished_while_the_connection_was_away_is_found_again(
    device, proxy, bundle, told
):
    target = target_of(device, port=proxy.port)

    def unplug(name, done_s, total_s, label):
        proxy.refuse = True
        proxy.cut()

    result = bench_on([target], bundle, LONGER, progress=unplug, say=told.say, patience_s=0.5)
    (one,) = result.results
    assert isinstance(one.error, DependencyError) and "finds the bench again" in str(one.error)
    (job,) = device.jobs()
    until = time.monotonic() + 60
    while not (job / "end.json").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    finished = json.loads((job / "result" / "report.json").read_text())

    proxy.refuse = False
    report = report_of(bench_on([target], bundle, LONGER, say=told.say))
    assert "found the bench of" in told and "finished meanwhile" in told
    assert report.environment.timestamp_utc == finished["environment"]["timestamp_utc"]
    # The command that was lost may still come back for it; a new one does not get it again.
    told.texts.clear()
    again = report_of(bench_on([target], bundle, LONGER, say=told.say))
    assert "found the bench" not in told
    assert again.environment.timestamp_utc > report.environment.timestamp_utc
    assert not job.exists()


def test_a_job_that_was_killed_goes_on_with_what_it_has(device, bundle, told):
    def lines(folder, name):
        return [json.loads(line) for line in (folder / name).read_text().splitlines() if line]

    def parts(records):
        return [(one["file"], one["batch"], one["round"]) for one in records
                if one.get("kind") == "part"]  # fmt: skip

    done = []

    def kill_job():
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(0.02)
            for job in device.jobs():
                if (job / "result" / "results.jsonl").exists():
                    found = parts(lines(job / "result", "results.jsonl"))
                    if len(found) >= 2:
                        os.killpg(int((job / "alive").read_text()), signal.SIGKILL)
                        done.extend(found)
                        return

    killer = threading.Thread(target=kill_job)
    killer.start()
    report = report_of(bench_on([target_of(device)], bundle, LONGER, say=told.say))
    killer.join()
    assert "starting it again" in told and len(report.rows) == 3
    records = lines(bundle.path, "results-orin.jsonl")
    assert sum(one.get("kind") == "session" for one in records) == 2
    # What was measured before was not measured again.
    rounds = LONGER.config.rounds
    assert 2 <= len(done) < rounds
    assert len(parts(records)) == len(set(parts(records))) == rounds
    assert device.jobs() == []


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
