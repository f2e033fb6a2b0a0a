"""Two gloo processes do what one does; one that is killed ends the other, and the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.cli.train import open_trainer
from oat_edge.data import Dataset
from oat_edge.errors import DependencyError, InputError
from oat_edge.train.checkpoint import load_checkpoint
from oat_edge.train.distributed import ALONE, Ranks, joined
from oat_edge.train.loop import Trainer
from oat_edge.train.watch import LostProcess
from tests.conftest import tiny_config
from tests.gpus import on_gpu
from tests.train.ranks import CASES, everything, free_port, killed_config, made_data, run


class Outcome(NamedTuple):
    one: dict[str, Any]
    two: list[dict[str, Any]]
    codes: list[int | None]
    folder: Path


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("ranks")
    two, codes = run(2, folder)
    return Outcome(everything(ALONE, folder), two, codes, folder)


@pytest.mark.parametrize(("batch", "accumulate"), CASES)
def test_two_processes_step_as_one(outcome: Outcome, batch: str, accumulate: int) -> None:
    """In double precision, after two steps; a share may hold no sample of a branch."""
    one, two = outcome.one, outcome.two
    losses, state, stream = one["steps"][f"{batch}, {accumulate}"]
    for found in two:
        own_losses, own_state, own_stream = found["steps"][f"{batch}, {accumulate}"]
        assert own_losses == pytest.approx(losses, rel=1e-6)  # added up in float32
        assert torch.equal(own_stream, stream), "other random numbers were drawn"
        for name, value in state.items():
            torch.testing.assert_close(own_state[name], value, rtol=1e-6, atol=1e-9, msg=name)
    first, second = (found["steps"][f"{batch}, {accumulate}"][1] for found in two)
    for name in state:
        if "running" not in name:
            assert torch.equal(first[name], second[name]), f"{name} has drifted apart"


def test_batch_statistics_of_bfloat16_are_float32_over_all_processes(
    outcome: Outcome,
) -> None:
    one, two = outcome.one, outcome.two
    for found in two:
        for own, expected in zip(found["norm"], one["norm"], strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_two_processes_run_as_one_and_the_first_alone_writes(
    outcome: Outcome,
) -> None:
    """Float32; a low rate keeps rounding from growing. The scores are of whole images."""
    one, two = outcome.one, outcome.two
    grid, state = one["run"]
    for own_grid, own_state in (found["run"] for found in two):
        assert own_grid == two[0]["run"][0], "the processes do not agree on the score"
        for own, expected in zip(own_grid, grid, strict=True):
            assert own == pytest.approx(expected, abs=2 / 32)
        for name, value in state.items():
            torch.testing.assert_close(own_state[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_what_the_first_says_and_what_any_says_reaches_all(
    outcome: Outcome,
) -> None:
    for found in outcome.two:
        assert found["bytes"] == b"of 0"
        assert found["any"] == [False, True]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 9))
def test_every_sample_has_one_process_and_the_load_is_even(clean: list[bool], size: int) -> None:
    flags = torch.tensor(clean)
    shares = [Ranks(rank=rank, size=size).share_of(flags) for rank in range(size)]
    assert torch.equal(torch.stack(shares).sum(0), torch.ones(len(clean), dtype=torch.int64))
    for kind in (flags, ~flags):
        counts = [int((share & kind).sum()) for share in shares]
        assert max(counts) - min(counts) <= 1
    assert ALONE.share_of(flags).all()


@pytest.mark.parametrize(("size", "accumulate"), [(7, 1), (1, 6), (4, 2)])
def test_a_batch_that_does_not_divide_is_one_line(
    digits: Dataset, tmp_path: Path, size: int, accumulate: int
) -> None:
    class Several(Ranks):
        """As many processes as it says; what would need the others is not reached."""

        __slots__ = ()

        def check_same(self, what: str, value: Any) -> None: ...

    # 60 is no multiple of 7 or 8; parts of 10 images are too few for 6 λ.
    with pytest.raises(InputError, match="batch") as refused:
        Trainer(
            tiny_config(accumulate=accumulate), digits, tmp_path, ranks=Several(size=size)
        ).train()
    assert "\n" not in str(refused.value)


def test_accumulate_must_divide_the_batch() -> None:
    with pytest.raises(InputError, match="accumulate is 7"):
        tiny_config(accumulate=7)


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "RANK", "LOCAL_RANK"])
def test_a_damaged_environment_is_one_line(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "two")
    with pytest.raises(InputError, match=variable), joined("cpu", last_words=print):
        pass


@on_gpu
def test_more_processes_than_gpus_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    count = torch.cuda.device_count()
    monkeypatch.setenv("WORLD_SIZE", str(count + 1))
    monkeypatch.setenv("LOCAL_RANK", str(count))
    with pytest.raises(DependencyError, match="GPU"), joined("cuda", last_words=print):
        pass


def _torchrun(processes: int) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, "-m", "oat_edge", "train"]


ARGUMENTS = "--arch resnet8 --widths 0.5,1.0 --train-samples 120 --batch-size 60 --attack-steps 1"


def _two(folder: Path, environment: dict[str, str], *arguments: str) -> list[subprocess.Popen[str]]:
    """`oat-edge train` in two processes, as a launcher starts them."""
    port = str(free_port())
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "oat_edge", "train", *arguments],
            cwd=folder,
            env=environment | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def _wait_for_steps(processes: list[subprocess.Popen[str]]) -> None:
    """Until the first process has said that the second epoch is done; the first one is saved."""
    assert processes[0].stdout is not None
    while not (line := processes[0].stdout.readline()).startswith("epoch 2/"):
        assert line, processes[0].communicate()[1]


def test_a_killed_process_ends_the_others_and_one_alone_resumes_the_run(outcome: Outcome) -> None:
    """The state is of no number of processes."""
    assert outcome.codes == [LostProcess.exit_code, -signal.SIGKILL]
    words = (outcome.folder / "words-0").read_text()
    assert "process 1 of 2 is gone" in words and "--resume" in words and "\n" not in words
    run_dir = outcome.folder / "killed"
    resumed = Trainer(killed_config(), made_data(), run_dir, resume=True)
    assert resumed.state.epoch == 1
    resumed.train()
    assert [entry["epoch"] for entry in resumed.state.metrics] == [0, 1, 2]
    assert load_checkpoint(run_dir).info["epoch"] == 2


@pytest.mark.slow
def test_ctrl_c_in_one_process_saves_once_and_stops_all(
    tmp_path: Path, child_environment: dict[str, str]
) -> None:
    """All stop after the same step; one says so."""
    new = [*ARGUMENTS.split(), "--epochs", "400", "--out", "run"]
    processes = _two(tmp_path, child_environment, *new)
    _wait_for_steps(processes)
    processes[1].send_signal(signal.SIGINT)
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [130, 130], outputs
    assert sum(errors.count("error: stopped in epoch") for _, errors in outputs) == 1, outputs
    assert not outputs[1][0], "the second process has printed"
    assert open_trainer({}, out=tmp_path / "run", resume=True).state.metrics


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_ends_when_a_process_is_killed(
    tmp_path: Path, child_environment: dict[str, str], rank: int
) -> None:
    launcher = subprocess.Popen(
        [*_torchrun(2), *ARGUMENTS.split(), "--epochs", "400", "--out", "run"],
        cwd=tmp_path,
        env=child_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for_steps([launcher])
    os.kill(_worker(launcher.pid, rank), signal.SIGKILL)
    started = time.monotonic()
    _, errors = launcher.communicate(timeout=60)
    assert time.monotonic() - started < 60
    assert errors.count(f"error: process {rank} of 2 is gone") == 1, errors


def _worker(launcher: int, rank: int) -> int:
    """Process id of torchrun's worker of that rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == str(launcher) and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError("no such worker")


@on_gpu
def test_all_gpus_train_one_run(tmp_path: Path, child_environment: dict[str, str]) -> None:
    """As many processes as there are GPUs."""
    arguments = [*ARGUMENTS.split(), "--epochs", "1", "--device", "cuda", "--out", "run"]
    subprocess.run(
        [*_torchrun(torch.cuda.device_count()), *arguments],
        cwd=tmp_path,
        env=child_environment,
        check=True,
        timeout=300,
    )
    assert load_checkpoint(tmp_path / "run").spec.arch == "resnet8"
