"""A bench that is killed goes on where it stopped, wherever that was."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from oat_edge.bench.request import BenchRequest, plan_request, run_request
from oat_edge.bench.results import Results
from oat_edge.bench.run import bench_bundle
from oat_edge.device.system import System
from oat_edge.errors import InputError
from tests.bench.conftest import QUICKEST

pytestmark = pytest.mark.usefixtures("frozen_heap")

CONFIG = dataclasses.replace(QUICKEST, min_seconds=0.3, rounds=3)
WIDTHS, LAMBDAS = (0.5, 1.0), (0.0, 1.0)
ORIN = Path(__file__).parents[1] / "device/trees/orin-nx"


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


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
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
    # The second run measured nothing: it is no part of what the figures come from.
    assert again.settings["sessions"] == report.settings["sessions"]
    assert again.monitor == report.monitor and again.environment == report.environment
    assert not any("resumed" in text for text in again.warnings)


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
    with pytest.raises(InputError, match=rf"another {name}\..*leave out --resume"):
        bench(bundle, results, resume=True, config=dataclasses.replace(QUICKEST, **changes))
    assert results.read_bytes() == content


def test_patience_may_change_between_runs(bundle, tmp_path):
    results = tmp_path / "results.jsonl"
    bench(bundle, results, resume=False, config=QUICKEST)
    longer = dataclasses.replace(QUICKEST, timeout_s=50.0)
    bench(bundle, results, resume=True, config=longer)


ASKED = """
import sys
from pathlib import Path
from oat_edge.bench.request import run_request
from oat_edge.bundle import Bundle
from tests.bench import test_resume
run_request(test_resume.request(), Bundle.open(sys.argv[1]), folder=Path(sys.argv[2]))
"""


def request(**changes):
    return BenchRequest(config=CONFIG, width="1.0", **changes)


def test_a_second_bench_waits_for_the_first(bundle, tmp_path, child_environment):
    """Two at once would measure each other; what the second says of the machine is of its turn."""
    first = tmp_path / "results.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", ASKED, str(bundle.path), str(tmp_path)], env=child_environment
    )
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.01)
    told = []
    (tmp_path / "second").mkdir()
    report = run_request(request(), bundle, folder=tmp_path / "second", say=told.append)
    assert process.wait() == 0 and told == ["waiting for another bench on this machine to end"]
    ended = first.stat().st_mtime
    began = datetime.fromisoformat(report.environment.timestamp_utc).timestamp()
    assert began >= ended - 1  # whole seconds


def test_a_dry_run_knows_what_cannot_be_resumed(bundle, tmp_path):
    run_request(request(), bundle, folder=tmp_path)
    planned = plan_request(request(resume=True), bundle, folder=tmp_path)
    assert planned and all(one.done for one in planned)
    other = dataclasses.replace(request(resume=True), config=dataclasses.replace(CONFIG, seed=3))
    with pytest.raises(InputError, match=r"another settings\.seed: it was 0, is 3"):
        plan_request(other, bundle, folder=tmp_path)


def test_another_state_of_the_machine_is_not_mixed_in(bundle, tmp_path):
    """The same board in another power mode, or with its clocks held."""
    tree = Path(shutil.copytree(ORIN, tmp_path / "orin"))
    jetson = dataclasses.replace(QUICKEST, device="jetson", processor="cpu")

    def measure(**options):
        return bench_bundle(
            bundle, jetson, widths=(1.0,), lambdas=(0.0,), system=System(tree),
            results=tmp_path / "results.jsonl", **options,
        )  # fmt: skip

    report, _ = measure()
    held = {"set": {"clocks": "fixed"}, "before": {}}
    with pytest.raises(InputError, match=r"another held\.clocks"):
        measure(resume=True, held=held)
    mode = tree / "commands/nvpmodel -q"
    mode.write_text("NV Power Mode: OTHER\n7\n")
    with pytest.raises(InputError, match=r"another jetson\.power_mode"):
        measure(resume=True)
    # What a tree says of its rails was not measured on the machine that ran.
    (row,) = report.rows
    assert row.energy_mj is None and row.power is None
    assert any("recorded tree" in text for text in row.warnings if text.startswith("energy_mj"))


def test_a_full_temporary_folder_is_one_line(bundle, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(InputError, match="TMPDIR"):
        bench_bundle(bundle, QUICKEST, widths=(1.0,), lambdas=(0.0,))
