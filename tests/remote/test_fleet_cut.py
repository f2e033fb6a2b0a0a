from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from oat_edge.bundle import Bundle, save_manifest
from oat_edge.errors import DependencyError
from oat_edge.files import sha256_file
from oat_edge.remote.bench import Parcel, send_missing
from oat_edge.remote.client import Session
from oat_edge.remote.fetch import fetch_file
from oat_edge.remote.fleet import bench_on
from oat_edge.remote.ssh import LostError
from tests.remote.conftest import REQUEST, target_of
from tests.remote.test_fleet import report_of

# Long enough to be cut off in the middle.
LONGER = dataclasses.replace(
    REQUEST, config=dataclasses.replace(REQUEST.config, min_seconds=1.5, rounds=10)
)


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
