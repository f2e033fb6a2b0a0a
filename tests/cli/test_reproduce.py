"""`oat-edge reproduce` end to end on a few digits, stopped in the middle, and spread out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from oat_edge.data import load
from oat_edge.train.checkpoint import CHECKPOINT, load_checkpoint
from tests.cli.test_errors import check_refused

TINY = (
    "reproduce", "--budget", "smoke", "--set", "epochs=1", "--set", "train_samples=48",
    "--set", "batch_size=24", "--set", "attack_steps=1", "--set", "widths=0.5,1",
    "--set", "lambdas=0,1", "--samples", 6, "--eval-width", "1", "--out", "here",
)  # fmt: skip
NAMES = ["oats-seed0", "dedicated-lambda0-seed0", "dedicated-lambda1-seed0"]


def results(folder=Path("here")):
    """Without what differs from call to call."""
    value = json.loads((folder / "results.json").read_text())
    for name in ("environment", "settings"):
        del value[name]
    for model in value["models"]:
        del model["training_s"], model["attack_s"]
    return value


def right_on_test_images(name, width, lam):
    """Share of all test images, by the network itself."""
    network = load_checkpoint(Path("here/runs") / name).network.eval()
    test = load("digits").test
    with torch.no_grad():
        images = torch.from_numpy(test.images).float() / 255
        logits = network(images, torch.full((len(images),), lam), width=width)
    return (logits.argmax(dim=1).numpy() == test.labels).mean()


def files(pattern):
    return {path: path.stat().st_mtime_ns for path in Path("here").rglob(pattern)}


def test_the_whole_comparison_and_again_from_what_is_there(main):
    ended = main(*TINY, "--dry-run")
    assert ended.code == 0 and not Path("here").exists()
    for name in NAMES:
        assert name in ended.out
    ended = main(*TINY)
    assert ended.code == 0, ended
    assert {path.name for path in Path("here").iterdir()} >= {
        "results.json", "table.md", "figure.png", "runs",
    }  # fmt: skip
    value = results()
    assert [model["model"] for model in value["models"]] == NAMES
    num_test = len(load("digits").test)
    for row in value["rows"]:
        assert (row["num_test"], row["num_attacked"]) == (num_test, 6)
        shares = row["standard_accuracy"]["by_seed"]
        right = right_on_test_images(f"{row['group']}-seed0", row["width"], row["lambda"])
        assert shares == [pytest.approx(right)]
    assert value["missing"] == [] and value["evaluation"]["num_samples"] == 6
    points = [(row["group"], row["width"], row["lambda"]) for row in value["rows"]]
    assert points == [
        ("oats", 1.0, 0.0), ("oats", 1.0, 1.0),
        ("dedicated-lambda0", 1.0, 0.0), ("dedicated-lambda1", 1.0, 1.0),
    ]  # fmt: skip
    for claim in value["comparisons"][0]["claims"]:
        assert f"{claim['status']}: {claim['text']}" in ended.out
    # Again: nothing is trained or attacked, and everything comes out the same.
    cells = files("*.npz")
    cells = {path: at for path, at in cells.items() if "eval-samples" not in path.name}
    ended = main(*TINY, "--json", "-")
    assert ended.code == 0 and "epoch 1/1" not in ended.err
    assert json.loads(ended.out)["rows"] == value["rows"] and results() == value
    assert cells.items() <= files("*.npz").items()


@pytest.mark.slow
def test_networks_trained_one_by_one_give_the_same(main):
    for name in reversed(NAMES):
        ended = main(*TINY, "--only", name)
        assert ended.code == 0 and "without --only" in ended.out
        assert not Path("here/results.json").exists()
    assert sorted(path.name for path in Path("here/runs").glob("[!.l]*")) == sorted(NAMES)
    assert main(*TINY).code == 0
    spread = results()
    assert main(*TINY[:-1], "other").code == 0
    assert results(Path("other")) == spread


def test_a_run_with_other_settings_is_not_mixed_in(main):
    assert main(*TINY, "--only", NAMES[1]).code == 0
    ended = main(*TINY, "--set", "lr=0.01")
    check_refused(ended, 2, "begun with lr 0.05, now it is 0.01", "another --out")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("--budget huge", "budget is 'huge'"),
        ("--recipe nosuch", "recipe is 'nosuch'"),
        ("--recipe paper-svhn --data digits", "is for svhn"),
        ("--set epoch=3", "'epoch' is no setting"),
        ("--set arch=vit", "architecture is 'vit'"),
        ("--set arch=mobilenet-v2 --oat-per-width", "mobilenet-v2-x0.5"),
        ("--dedicated 0.25", "dedicated λ is 0.25"),
        ("--only nosuch", "no model is called 'nosuch'"),
        ("--attack fgsm", "attack is 'fgsm'"),
        ("--device tpu", "device is 'tpu'"),
        ("--seeds 0", "seeds is 0"),
        ("--out /dev/null --dry-run", "/dev/null is a file: name another --out"),
        ("--out /dev/null/deep", "/dev/null is a file: name another --out"),
        ("--data nosuch", "nosuch"),
    ],
)
def test_refuses(arguments, part, main):
    check_refused(main("reproduce", *arguments.split()), 2, part)
    assert list(Path.cwd().iterdir()) == []


def _started(folder, environment, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "oat_edge", *map(str, TINY), *more],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere_the_same_command_goes_on(main, child_environment, tmp_path, seed):
    """Real processes, killed at moments between the first file and the end."""
    for number in range(4):
        process = _started(Path.cwd(), child_environment, "--set", "epochs=2")
        while process.poll() is None and not any(Path("here").rglob("train_state.pt")):
            time.sleep(0.01)
        time.sleep(0.7 * number + 0.21 * seed)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert main(*TINY, "--set", "epochs=2").code == 0
    assert main(*TINY[:-1], "whole", "--set", "epochs=2").code == 0
    assert results() == results(Path("whole"))
    for name in NAMES:
        first, second = (Path(folder, "runs", name, CHECKPOINT) for folder in ("here", "whole"))
        assert first.read_bytes() == second.read_bytes()


def test_ctrl_c_in_training_says_how_to_go_on(main):
    """The signal comes once the run has its files, and so its handler."""

    def interrupt():
        while not any(Path("here").rglob("config.json")):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    alone = (*TINY, "--set", "epochs=12", "--set", "val_every=12", "--only", NAMES[0])
    thread = threading.Thread(target=interrupt)
    thread.start()
    ended = main(*alone)
    thread.join()
    assert ended.code == 130
    assert f"stopped while {NAMES[0]} was trained; the same command goes on" in ended.err
    assert not any(Path("here").rglob(CHECKPOINT))
    assert main(*alone).code == 0
    assert load_checkpoint(Path("here/runs") / NAMES[0]).info["epoch"] == 11
