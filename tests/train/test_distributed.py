"""Two gloo processes do what one does; one that is killed ends the other, and the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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
from oat_edge.train.state import TRAIN_STATE
from tests.conftest import tiny_config
from tests.train.ranks import BATCHES, alone, everything, free_port, run


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return alone(folder), run(everything, 2, folder)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("batch", BATCHES)
def test_two_processes_step_as_one(
    one_and_two: tuple[Any, list[Any]], batch: str, accumulate: int
) -> None:
    """In double precision, after three steps; a share may hold no sample of a branch."""
    one, two = one_and_two
    losses, state, stream = one["steps"][f"{batch}, {accumulate}"]
    for found in two:
        own_losses, own_state, own_stream = found["steps"][f"{batch}, {accumulate}"]
        assert own_losses == pytest.approx(losses, rel=1e-9)
        assert torch.equal(own_stream, stream), "other random numbers were drawn"
        for name, value in state.items():
            torch.testing.assert_close(own_state[name], value, rtol=1e-6, atol=1e-9, msg=name)
    first, second = (found["steps"][f"{batch}, {accumulate}"][1] for found in two)
    for name in state:
        if "running" not in name:
            assert torch.equal(first[name], second[name]), f"{name} has drifted apart"


def test_batch_statistics_of_bfloat16_are_float32_over_all_processes(
    one_and_two: tuple[Any, list[Any]],
) -> None:
    one, two = one_and_two
    for found in two:
        for own, expected in zip(found["norm"], one["norm"], strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_two_processes_run_as_one_and_the_first_alone_writes(
    one_and_two: tuple[Any, list[Any]],
) -> None:
    """Float32; a low rate keeps rounding from growing. The scores are of whole images."""
    one, two = one_and_two
    grid, state = one["run"]
    for own_grid, own_state in (found["run"] for found in two):
        assert own_grid == two[0]["run"][0], "the processes do not agree on the score"
        for own, expected in zip(own_grid, grid, strict=True):
            assert own == pytest.approx(expected, abs=2 / 32)
        for name, value in state.items():
            torch.testing.assert_close(own_state[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_what_the_first_says_and_what_any_says_reaches_all(
    one_and_two: tuple[Any, list[Any]],
) -> None:
    for found in one_and_two[1]:
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


@pytest.mark.parametrize(("size", "accumulate"), [(7, 1), (1, 5), (4, 2)])
def test_a_batch_that_does_not_divide_is_one_line(
    digits: Dataset, tmp_path: Path, size: int, accumulate: int
) -> None:
    class Several(Ranks):
        """As many processes as it says; what would need the others is not reached."""

        __slots__ = ()

        def check_same(self, what: str, value: Any) -> None: ...

    # 60 is no multiple of 7 or 8; 5 parts of 12 images are too few for 6 λ and 2 clean samples.
    with pytest.raises(InputError, match="batch") as refused:
        config = tiny_config(accumulate=accumulate, clean_share=0.1)
        Trainer(config, digits, tmp_path, ranks=Several(size=size)).train()
    assert "\n" not in str(refused.value)


def test_accumulate_must_divide_the_batch() -> None:
    with pytest.raises(InputError, match="accumulate is 7"):
        tiny_config(accumulate=7)


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "RANK", "LOCAL_RANK"])
def test_a_damaged_environment_is_one_line(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "two")
    with pytest.raises(InputError, match=variable), joined("cpu", last_words=print):
        pass


@pytest.mark.gpu
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
    """Until the first process has said that an epoch is done."""
    assert processes[0].stdout is not None
    while not (line := processes[0].stdout.readline()).startswith("epoch 1/"):
        assert line, processes[0].communicate()[1]


def test_a_killed_process_ends_all_with_one_message_and_the_run_goes_on(
    tmp_path: Path, child_environment: dict[str, str]
) -> None:
    new = [*ARGUMENTS.split(), "--epochs", "400", "--out", "run"]
    processes = _two(tmp_path, child_environment, *new)
    _wait_for_steps(processes)
    processes[1].kill()
    _, errors = processes[0].communicate(timeout=60)
    assert processes[0].returncode == DependencyError.exit_code
    assert errors.count("error: ") == 1 and "process 1 of 2 is gone" in errors
    processes[1].communicate()

    # Ctrl-C in one of them: all stop at the same step, and the state is saved.
    processes = _two(tmp_path, child_environment, "--resume", "--out", "run")
    _wait_for_resumed(processes)
    processes[1].send_signal(signal.SIGINT)
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [130, 130], outputs
    assert sum(errors.count("--resume") for _, errors in outputs) == 1, outputs
    assert not outputs[1][0], "the second process has printed"

    # The state is of no number of processes: one alone goes on.
    trainer = open_trainer({}, out=tmp_path / "run", resume=True)
    done = trainer.state.epoch
    assert done > 0
    with pytest.raises(Exception, match="--resume"):
        trainer.train(should_stop=lambda: trainer.state.epoch > done)
    assert (tmp_path / "run" / TRAIN_STATE).exists()


def _wait_for_resumed(processes: list[subprocess.Popen[str]]) -> None:
    assert processes[0].stdout is not None
    while not (line := processes[0].stdout.readline()).startswith("epoch "):
        assert line, processes[0].communicate()[1]


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


@pytest.mark.gpu
@pytest.mark.slow
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
