"""A bench that is killed goes on where it stopped, wherever that was."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from oat_edge.bench.results import Results
from oat_edge.bench.run import bench_bundle
from oat_edge.errors import InputError
from tests.bench.conftest import QUICKEST

pytestmark = pytest.mark.usefixtures("frozen_heap")

CONFIG = dataclasses.replace(QUICKEST, min_seconds=0.3, rounds=3)
WIDTHS, LAMBDAS = (0.5, 1.0), (0.0, 1.0)


def bench(bundle, results, *, resume, config=CONFIG):
    return bench_bundle(
        bundle, config, widths=WIDTHS, lambdas=LAMBDAS, results=results, resume=resume
    )


def cells_of(records):
    """What was finished, as often as it was."""
    kinds = ("part", "throughput", "accuracy", "memory")
    return [
        (one["kind"], one["file"], one["batch"], one.get("round"))
        for one in records
        if one["kind"] in kinds
    ]


SCRIPT = """
import dataclasses, sys
from pathlib import Path
from oat_edge.bundle import Bundle
from tests.bench import test_resume
print("begun", flush=True)
test_resume.bench(Bundle.open(sys.argv[1]), Path(sys.argv[2]), resume=True)
"""


@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere_a_bench_repeats_no_finished_cell(
    bundle, tmp_path, child_environment, seed
):
    """Killed again and again after random times until it ends by itself."""
    results, rng = tmp_path / "results.jsonl", random.Random(seed)
    num_killed, before = 0, []
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(bundle.path), str(results)],
            env=child_environment,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout.readline() == b"begun\n"
        try:
            process.wait(rng.uniform(0.2, 2.5) + num_killed / 2)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            num_killed += 1
        after = cells_of(Results.peek(results).records) if results.exists() else []
        assert after[: len(before)] == before
        before = after
        if process.returncode == 0:
            break
        assert num_killed < 30
    assert len(set(before)) == len(before), "a finished cell was measured again"
    assert len(before) == 3 * 3 + 3 * 3
    report, _ = bench(bundle, results, resume=True)
    assert cells_of(Results.peek(results).records) == before  # nothing was left to do
    assert all((row.status != "failed" and row.worst is not None) or row.lam for row in report.rows)
    assert any("the bench was resumed" in text for text in report.warnings) == (num_killed >= 0)


def test_the_report_of_a_resumed_bench_is_that_of_the_records(bundle, tmp_path):
    results = tmp_path / "results.jsonl"
    report, samples = bench(bundle, results, resume=False)
    again, same = bench(bundle, results, resume=True)
    assert again.rows == report.rows and again.lambda_flatness == report.lambda_flatness
    assert again.transfer == report.transfer
    for one, two in zip(samples, same, strict=True):
        assert one.name == two.name and (one.latency_ns == two.latency_ns).all()
    assert len(again.settings["sessions"]) == 2


def test_without_resume_everything_is_measured_anew(bundle, tmp_path):
    results = tmp_path / "results.jsonl"
    first, _ = bench(bundle, results, resume=False, config=QUICKEST)
    second, _ = bench(bundle, results, resume=False, config=QUICKEST)
    assert [row.latency_ms for row in first.rows] != [row.latency_ms for row in second.rows]
    assert second.settings["sessions"] and len(second.settings["sessions"]) == 1


@pytest.mark.parametrize(
    ("changes", "name"), [({"seed": 1}, "settings"), ({"batches": (1, 2)}, "settings")]
)
def test_other_settings_are_not_mixed_in(bundle, tmp_path, changes, name):
    results = tmp_path / "results.jsonl"
    bench(bundle, results, resume=False, config=QUICKEST)
    content = results.read_bytes()
    with pytest.raises(InputError, match=f"another {name}.*without --resume"):
        bench(bundle, results, resume=True, config=dataclasses.replace(QUICKEST, **changes))
    assert results.read_bytes() == content


def test_patience_may_change_between_runs(bundle, tmp_path):
    results = tmp_path / "results.jsonl"
    bench(bundle, results, resume=False, config=QUICKEST)
    longer = dataclasses.replace(QUICKEST, timeout_s=50.0)
    bench(bundle, results, resume=True, config=longer)


def test_a_second_bench_waits_for_the_first(bundle, tmp_path, child_environment):
    """Two at once would measure each other."""
    results = tmp_path / "results.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(bundle.path), str(results)],
        env=child_environment,
        stdout=subprocess.PIPE,
    )
    while not results.exists():
        assert process.poll() is None
        time.sleep(0.01)
    told = []
    bench_bundle(bundle, QUICKEST, widths=(1.0,), lambdas=(0.0,), say=told.append)
    assert process.wait() == 0 and told == ["waiting for another bench on this machine to end"]
    # The first had all that time for itself: its last record is older than the second's first.
    assert json.loads(results.read_text().splitlines()[-1])["kind"] in ("memory", "facts")
