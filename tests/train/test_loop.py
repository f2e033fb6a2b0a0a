"""Training: what it leaves behind, and that no interruption changes the result."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from oat_edge.data import Dataset
from oat_edge.errors import InputError
from oat_edge.train.checkpoint import CHECKPOINT, load_checkpoint
from oat_edge.train.loop import Interrupted, Trainer
from oat_edge.train.schedule import cosine
from oat_edge.train.state import TRAIN_STATE, load_state
from tests.conftest import tiny_config

ROOT = Path(__file__).parents[2]


def test_a_run_directory_is_complete(tiny_run: Path) -> None:
    names = {path.name for path in tiny_run.iterdir()} - {".lock"}
    assert names == {CHECKPOINT, TRAIN_STATE, "config.json", "metrics.jsonl"}
    assert (tiny_run.parent / "latest").resolve() == tiny_run.resolve()
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert all(len(line["validation"]) == 2 * 6 for line in lines)
    best = max(lines, key=lambda line: line["score"])
    assert load_checkpoint(tiny_run).info["epoch"] == best["epoch"]


def test_training_learns_at_every_width(digits: Dataset, tmp_path: Path) -> None:
    """Thirty steps on 120 digits: standard accuracy at λ = 0 far above the chance of 10 %."""
    config = tiny_config(epochs=15, eps=8 / 255, val_every=15)
    grid = Trainer(config, digits, tmp_path).train()
    assert all(point.standard > 0.4 for point in grid if point.point.lam == 0), grid


def test_a_clean_pass_of_all_images_learns_and_draws_no_zero(
    digits: Dataset, tmp_path: Path
) -> None:
    """As many images at λ = 0 as in the whole batch leave it no worse than others are."""
    config = tiny_config(epochs=15, eps=8 / 255, val_every=15, clean_images="all")
    trainer = Trainer(config, digits, tmp_path)
    assert trainer.batches.draw(0, 0).knot_index.min() == 1
    assert trainer.step.options.all_clean == config.clean_share == 0.4
    assert all(point.standard > 0.4 for point in trainer.train())


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_stop_and_resume_gives_the_same_bytes(
    tiny_run: Path, digits: Dataset, tmp_path: Path, stop_after: int
) -> None:
    """Two epochs of two steps: stopped in the first epoch, at its end, and in the second."""
    calls = iter(range(100))
    with pytest.raises(Interrupted, match="--resume") as stopped:
        Trainer(tiny_config(), digits, tmp_path).train(
            should_stop=lambda: next(calls) + 1 == stop_after
        )
    assert stopped.value.exit_code == 130
    Trainer(tiny_config(), digits, tmp_path, resume=True).train()
    assert (tmp_path / CHECKPOINT).read_bytes() == (tiny_run / CHECKPOINT).read_bytes()


KILLED_RUN = """
import sys
from pathlib import Path
from oat_edge.data import load
from oat_edge.train.loop import Trainer
from tests.conftest import tiny_config

run, resume = Path(sys.argv[1]), sys.argv[2] == "resume"
trainer = Trainer(tiny_config(epochs=8), load("digits", train_samples=120), run, resume=resume)
trainer.train(should_stop=lambda: print("step", flush=True))
"""


def _train_in_a_process(
    run_dir: Path, *, resume: bool, kill_after_lines: int | None, delay_s: float = 0
) -> int:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN, str(run_dir), "resume" if resume else "new"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if kill_after_lines is not None:
        while not (run_dir / "config.json").exists():
            time.sleep(0.005)
        for _ in range(kill_after_lines):
            process.stdout.readline()
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
    process.stdout.read()
    process.stdout.close()
    return process.wait()


def test_sigkill_at_any_moment_and_resume_gives_the_same_bytes(
    digits: Dataset, tmp_path: Path
) -> None:
    """Real processes, killed before the first step, inside an epoch and around its end."""
    Trainer(tiny_config(epochs=8), digits, tmp_path / "whole").train()
    moments, run = random.Random(0), tmp_path / "run"
    # The first kill falls as soon as the run is there; every later start is a --resume.
    for lines in (0, 2, 4):
        code = _train_in_a_process(
            run, resume=lines > 0, kill_after_lines=lines, delay_s=moments.uniform(0, 0.05)
        )
        assert code == -signal.SIGKILL
    assert _train_in_a_process(run, resume=True, kill_after_lines=None) == 0
    whole = (tmp_path / "whole" / CHECKPOINT).read_bytes()
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == whole
    left = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    assert left == {CHECKPOINT, TRAIN_STATE, "config.json", "metrics.jsonl"}


def test_resuming_a_finished_run_changes_nothing(
    digits: Dataset, tmp_path: Path, tiny_run: Path
) -> None:
    (tmp_path / TRAIN_STATE).write_bytes((tiny_run / TRAIN_STATE).read_bytes())
    grid = Trainer(tiny_config(), digits, tmp_path, resume=True).train()
    assert len(grid) == 12
    # The checkpoint is made again from the state: a kill may fall between the two files.
    assert (tmp_path / CHECKPOINT).read_bytes() == (tiny_run / CHECKPOINT).read_bytes()


def test_a_run_is_never_overwritten(tiny_run: Path, digits: Dataset) -> None:
    with pytest.raises(InputError, match="already holds a run"):
        Trainer(tiny_config(), digits, tiny_run)


def test_resume_refuses_other_settings_and_other_data(
    tiny_run: Path, digits: Dataset, tmp_path: Path
) -> None:
    (tmp_path / TRAIN_STATE).write_bytes((tiny_run / TRAIN_STATE).read_bytes())
    with pytest.raises(InputError, match="other settings"):
        Trainer(tiny_config(lr=0.03), digits, tmp_path, resume=True)
    from oat_edge.data import load

    with pytest.raises(InputError, match="data"):
        other = load("digits", train_samples=120, seed=9)
        Trainer(tiny_config(), other, tmp_path, resume=True)


@pytest.mark.parametrize("flip", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_damaged_state_is_one_line(tiny_run: Path, tmp_path: Path, flip: float) -> None:
    data = bytearray((tiny_run / TRAIN_STATE).read_bytes())
    data[int(flip * len(data))] ^= 0xFF
    (tmp_path / TRAIN_STATE).write_bytes(data)
    try:
        state, _, _ = load_state(tmp_path / TRAIN_STATE)
    except InputError as error:
        assert "\n" not in str(error)
    else:  # the flip hit padding between records
        whole, _, _ = load_state(tiny_run / TRAIN_STATE)
        assert all(torch.equal(state.network[k], v) for k, v in whole.network.items())
    (tmp_path / TRAIN_STATE).write_bytes(data[: int(flip * len(data))])
    with pytest.raises(InputError):
        load_state(tmp_path / TRAIN_STATE)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_dedicated_baselines_train(digits: Dataset, tmp_path: Path, lam: float) -> None:
    config = tiny_config(widths=(1.0,), lambdas=(lam,), epochs=1)
    grid = Trainer(config, digits, tmp_path).train()
    assert [(p.point.width, p.point.lam) for p in grid] == [(1.0, lam)]
    assert load_checkpoint(tmp_path).spec.lambdas == (lam,)


def test_divergence_is_an_error_with_a_remedy(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lower --lr"):
        Trainer(tiny_config(lr=1e12, epochs=3), digits, tmp_path).train()


def test_a_batch_too_small_for_its_lambdas_is_refused(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch"):
        Trainer(tiny_config(batch_size=8), digits, tmp_path)


def test_seeds_differ_and_repeat(digits: Dataset, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> bytes:
        config = tiny_config(epochs=1, seed=seed)
        Trainer(config, digits, tmp_path / name).train()
        return (tmp_path / name / CHECKPOINT).read_bytes()

    first = weights("a", 1)
    assert first == weights("b", 1)
    assert first != weights("c", 2)


def test_cosine_falls_from_lr_to_zero() -> None:
    rates = [cosine(0.1, done, 100) for done in range(101)]
    assert rates[0] == 0.1
    assert rates[50] == pytest.approx(0.05)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert all(b < a for a, b in pairwise(rates))
