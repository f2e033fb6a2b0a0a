"""The three commands as a user runs them: real processes in an empty folder."""

from __future__ import annotations

import csv
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oat_edge.bundle import Bundle
from oat_edge.files import sha256_file

TINY = ("--train-samples", 120, "--epochs", 1, "--attack-steps", 1)


def check_plain(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert "\x1b" not in text and "Traceback" not in text and not set("╭╮╰╯│━") & set(text)
    assert "…" not in re.sub(r"on cpu …", "", text)


@pytest.fixture(scope="module")
def road(command, tmp_path_factory):
    """train, export and bench, one after the other."""
    folder = tmp_path_factory.mktemp("road")
    train = command("train", *TINY, cwd=folder)
    check_plain(train)
    # As the README has it, with fewer attacked images.
    export = command(
        "export", "--width", "0.5", "--format", "onnx", "--attack-samples", 40, cwd=folder
    )
    check_plain(export)
    bench = command(
        "bench", "--device", "cpu", "--quick", "--batch", 1, "--json", "-",
        "--csv", "rows.csv", "--plot", "plots/tradeoff.png", cwd=folder,
    )  # fmt: skip
    check_plain(bench)
    return folder, train, export, bench


def test_train_leaves_a_run_and_says_what_comes_next(road):
    folder, train, _, _ = road
    (run,) = [path for path in (folder / "runs").iterdir() if not path.is_symlink()]
    assert run.name == "digits-resnet8-1"
    assert (folder / "runs" / "latest").readlink() == Path(run.name)
    listed = {path.name for path in run.iterdir()} - {".lock"}
    assert listed == {"checkpoint.safetensors", "config.json", "metrics.jsonl", "train_state.pt"}
    config = json.loads((run / "config.json").read_text())
    assert config["train"]["train_samples"] == 120 and config["train"]["attack_steps"] == 1
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    *_, where, following = train.stdout.splitlines()
    assert where == "run: runs/digits-resnet8-1" and following == "next: oat-edge export"
    assert train.stderr == ""


def test_export_leaves_a_bundle_and_says_what_comes_next(road):
    folder, _, export, _ = road
    bundle = Bundle.open(folder / "bundles" / "latest")
    assert bundle.path.name == bundle.run == "digits-resnet8-1"
    assert {artifact.file for artifact in bundle.artifacts} == {
        "w0.50-fp32.onnx", "w0.50-fp32-lambda1.onnx", "attacks-w0.50-pgd20.npz",
    }  # fmt: skip
    for artifact in bundle.artifacts:
        assert bundle.checked_path(artifact).is_file() and artifact.file in export.stdout
    assert export.stdout.splitlines()[-1] == "next: oat-edge bench" and export.stderr == ""
    checkpoint = folder / "runs" / "latest" / "checkpoint.safetensors"
    assert bundle.checkpoint_sha256 == sha256_file(checkpoint)


def test_what_comes_next_is_what_a_shell_reads_whatever_the_folder_is_called(main):
    words = ["oat-edge", "export", "--checkpoint", "my runs [1]/it's"]
    trained = main("train", *TINY, "--widths", "0.5,1", "--batch-size", 24, "--out", words[-1])
    assert trained.code == 0, trained.err
    *_, where, following = trained.out.splitlines()
    assert where == f"run: {words[-1]}"
    assert shlex.split(following.removeprefix("next:")) == words
    exported = main(*words[1:], "--width", "0.5", "--attack-samples", 0, "--out", "a bundle [b]")
    assert exported.code == 0, exported.err
    following = exported.out.splitlines()[-1]
    assert shlex.split(following.removeprefix("next:")) == [
        "oat-edge", "bench", "--bundle", "a bundle [b]",
    ]  # fmt: skip


def test_bench_gives_nothing_but_json_on_standard_output(road):
    folder, _, _, bench = road
    report = json.loads(bench.stdout)
    assert report["schema"] == "oat-edge/bench/1"
    assert report == json.loads((folder / "bundles" / "latest" / "report.json").read_text())
    rows = report["rows"]
    assert {row["lambda"] for row in rows} == {0, 0.1, 0.2, 0.3, 0.4, 1}
    assert {(row["width"], row["batch"]) for row in rows} == {(0.5, 1)}
    assert all(row["latency_ms"]["p50"] > 0 and row["num_samples"] == 40 for row in rows)
    assert "report: " in bench.stderr and "w0.50" not in bench.stdout.split("{")[0]


def test_bench_also_writes_rows_and_a_plot(road):
    folder, _, _, bench = road
    with (folder / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(json.loads(bench.stdout)["rows"])
    assert (folder / "plots" / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["bundles", "plots", "rows.csv", "runs"]


def test_inspect_shows_the_newest_bundle(road, command):
    folder = road[0]
    done = command("inspect", cwd=folder)
    check_plain(done)
    assert "bundle digits-resnet8-1 of run digits-resnet8-1" in done.stdout
    assert done.stdout.count(" ok") == 3


def start(child_environment, folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "oat_edge", "train", *map(str, arguments)],
        cwd=folder,
        env=child_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until `path` is there; the process must still run."""
    for _ in range(600):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    pytest.fail(f"{path} did not come")


def test_ctrl_c_saves_resume_finishes_and_meanwhile_no_one_else_gets_in(
    child_environment, main, tmp_path
):
    run = tmp_path / "mine"
    small = ("--widths", 1, "--lambdas", "0,1", "--attack-steps", 1, "--epochs", 2)
    settings = ("--train-samples", 120, "--batch-size", 24, *small, "--out", run)
    training = start(child_environment, tmp_path, *settings)
    try:
        # The lock is held from before this file is there until the end.
        wait_for(run / "config.json", training)
        training.send_signal(signal.SIGSTOP)  # it shall not end before it is told to
        second = main("train", *settings)
        training.send_signal(signal.SIGINT)
        training.send_signal(signal.SIGCONT)
        out, err = training.communicate(timeout=60)
    finally:
        training.kill()
    (line,) = second.err.splitlines()
    assert second.code == 2
    assert f"another oat-edge command is writing {run}" in line or "already holds a run" in line

    assert training.returncode == 130, (out, err)
    (line,) = err.splitlines()
    assert re.search(r"stopped in epoch \d of 2; go on with: oat-edge train --resume", line)
    assert (run / "train_state.pt").is_file()

    resumed = main("train", "--resume", "--out", run)
    assert resumed.code == 0 and resumed.err == "" and "\x1b" not in resumed.out
    metrics = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in metrics] == [0, 1]
    assert (run / "checkpoint.safetensors").is_file()


def test_ctrl_c_outside_training_is_one_word_and_130(child_environment, tmp_path):
    """A pipe that nobody writes to stands for a slow disk: `inspect` waits in the midst of it."""
    import os

    os.mkfifo(tmp_path / "slow")
    process = subprocess.Popen(
        [sys.executable, "-m", "oat_edge", "inspect", "slow"],
        cwd=tmp_path,
        env=child_environment,
        # A suite that a shell runs in the background has inherited that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with (tmp_path / "slow").open("wb"):  # returns when inspect has opened its end
        # A signal between its open and its read would wait for the read to end.
        stat = Path(f"/proc/{process.pid}/stat")
        for _ in range(3):
            while stat.read_text().rpartition(") ")[2][0] != "S":
                time.sleep(0.05)
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
