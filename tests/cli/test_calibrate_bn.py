"""`oat-edge calibrate bn`, and what the other commands make of its run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from oat_edge.bundle import Bundle
from oat_edge.files import exclusive_lock, sha256_file
from oat_edge.nn.fold import fold
from oat_edge.train.checkpoint import load_checkpoint
from tests.cli.conftest import Ended

Main = Callable[..., Ended]
QUICK = ("--samples", 60, "--attack-samples", 6)
SMALL = (*QUICK, "--tune-steps", 3)
PLAIN = (*QUICK, "--tune-steps", 0)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, so that what is made beside it is this test's."""
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    return tmp_path / "runs" / "tiny"


def test_a_new_width_is_a_width_for_every_other_command(main: Main, run: Path) -> None:
    done = main("calibrate", "bn", "--checkpoint", run, "--width", 0.6, *SMALL, "--json", "a.json")
    assert done.code == 0, done.err
    made = run.with_name("tiny-w0.6")
    assert f"run: {made}" in done.out and "export --width 0.6" in done.out.splitlines()[-1]
    assert (run.parent / "latest").readlink() == Path(made.name)
    old, new = load_checkpoint(run), load_checkpoint(made)
    assert new.spec.widths == (0.5, 0.6, 1.0) and new.spec.calibrated_widths == (0.6,)
    for width in old.spec.widths:
        pair = zip(fold(old.network, width).state_dict().values(),
                   fold(new.network, width).state_dict().values(), strict=True)  # fmt: skip
        assert all(torch.equal(a, b) for a, b in pair)
    assert (run / "checkpoint.safetensors").exists() and old.info.keys() < new.info.keys()

    report = json.loads(Path("a.json").read_text())
    assert report["schema"] == "oat-edge/bn-calibration/1"
    assert report["run"]["checkpoint_sha256"] == new.sha256
    (found,) = report["widths"]
    assert found["source"] == {"run": "tiny", "checkpoint_sha256": old.sha256}
    assert (found["width"], found["neighbours"], found["samples"]) == (0.6, [0.5, 1.0], 60)
    assert [point["lambda"] for point in found["points"]] == list(new.spec.lambdas)
    offsets = [p[kind]["offset"] for p in found["points"] for kind in ("standard", "robust")]
    assert found["shortfall"] == max(0.0, -min(offsets))
    (record,) = new.info["calibrated"]
    assert record.items() <= found.items()
    assert (record["tune_steps"], record["tune_lr"]) == (3, old.info["train"]["lr"])
    # Of 6 attacked images one weighs more than 2 points: either may be.
    assert ("warning: width 0.6" in done.out) == (found["shortfall"] > 0.02)

    shown = main("inspect", made)
    assert shown.code == 0 and "not trained, only calibrated: width 0.6" in shown.out
    assert f"60 training images for run tiny ({old.sha256[:12]})" in shown.out
    assert "calibrated" not in main("inspect", run).out
    check_export(main, made, new.sha256)
    evaluated = main(
        "eval",
        made,
        "--attack",
        "pgd",
        "--samples",
        4,
        "--lambda",
        1,
        "--width",
        0.6,
        "--json",
        "-",
    )
    assert evaluated.code == 0, evaluated.err
    assert [row["width"] for row in json.loads(evaluated.out)["rows"]] == [0.6]


def check_export(main: Main, made: Path, sha256: str) -> None:
    """The new width alone becomes a bundle, which says that it was not trained."""
    small = ("--attack-samples", 0, "--no-floor", "--out", "bundle")
    exported = main("export", "--checkpoint", made, "--width", 0.6, *small)
    assert exported.code == 0, exported.err
    bundle = Bundle.open(Path("bundle"))
    assert [artifact.file for artifact in bundle.artifacts] == ["w0.60-fp32.onnx"]
    assert bundle.checkpoint_sha256 == sha256 and bundle.spec.calibrated_widths == (0.6,)
    assert "not trained, only calibrated: width 0.6" in main("inspect", "bundle").out


def test_two_widths_and_then_another(main: Main, run: Path) -> None:
    command = ("calibrate", "bn", *PLAIN, "--checkpoint")
    assert main(*command, run, "--width", "0.9,0.6", "--out", "both").code == 0
    assert main(*command, "both", "--width", 0.75, "--out", "three").code == 0
    both, three = load_checkpoint(Path("both")), load_checkpoint(Path("three"))
    assert three.spec.widths == (0.5, 0.6, 0.75, 0.9, 1.0)
    assert three.spec.trained_widths == (0.5, 1.0)
    records = {record["width"]: record for record in three.info["calibrated"]}
    assert [record["neighbours"] for record in records.values()] == [[0.5, 1.0]] * 3
    assert [record["tune_lr"] for record in records.values()] == [None] * 3  # nothing was tuned
    assert records[0.6]["source"]["run"] == "tiny" and records[0.75]["source"]["run"] == "both"
    for width in both.spec.widths:
        pair = (fold(each.network, width).table for each in (both, three))
        assert torch.equal(*pair)


def test_a_gate_that_fails_writes_figures_and_no_run(
    main: Main, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oat_edge.calib.width_error import WidthError

    command = ("calibrate", "bn", "--checkpoint", run, "--width", 0.6, *PLAIN, "--json", "-")
    monkeypatch.setattr(WidthError, "shortfall", 0.031)
    failed = main(*command, "--max-error", 3)
    assert failed.code == 5 and failed.err.splitlines()[-1].startswith("error: width 0.6 is 3.1 ")
    report = json.loads(failed.out)
    assert report["run"] is None and report["widths"][0]["shortfall"] == 0.031
    assert not run.with_name("tiny-w0.6").exists()
    passed = main(*command, "--max-error", 3.2)
    assert passed.code == 0 and "warning" not in passed.err
    assert json.loads(passed.out)["run"]["path"] == str(run.with_name("tiny-w0.6"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--width", 0.5), "width 0.5 is there already: this network has 0.5, 1"),
        (("--width", 0.4), "no trained width on either side: expected one between 0.5 and 1"),
        (("--width", "0.6,0.3"), "width 0.3 has no trained width"),
        (("--width", 1.5), "width 1.5 has no trained width"),
        (("--width", "x"), "width is 'x'"),
        (("--width", 0.501), "the channels of width 0.5 in every layer"),
        (("--width", 0.6, "--out", "RUN"), "already holds a run"),
        (("--width", 0.6, "--out", "/dev/null/run"), "/dev/null is no folder"),
        (("--width", 0.6, "--samples", 1), "--samples"),
        (("--width", 0.6, "--tune-steps", -1), "--tune-steps"),
        (("--width", 0.6, "--tune-lr", 0), "tune_lr is 0: expected a positive number"),
        (("--width", 0.6, "--device", "tpu"), "device is 'tpu'"),
        ((), "--width"),
    ],
)
def test_a_wrong_request_is_one_line(
    main: Main, run: Path, arguments: tuple[object, ...], says: str
) -> None:
    given = [run if argument == "RUN" else argument for argument in arguments]
    done = main("calibrate", "bn", "--checkpoint", run, *given)
    assert done.code == 2 and says in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("error:")]) == 1
    assert {path.name for path in run.parent.iterdir()} == {"tiny"}


def test_the_learning_rate_is_kept_on_record(main: Main, run: Path) -> None:
    command = ("calibrate", "bn", "--checkpoint", run, "--width", 0.6, *SMALL, "--tune-lr")
    for rate in (0.001, 0.02):
        assert main(*command, rate, "--out", str(rate)).code == 0
    low, high = load_checkpoint(Path("0.001")), load_checkpoint(Path("0.02"))
    assert [one.info["calibrated"][0]["tune_lr"] for one in (low, high)] == [0.001, 0.02]
    assert not torch.equal(fold(low.network, 0.6).table, fold(high.network, 0.6).table)


def test_the_second_of_two_commands_does_not_start(main: Main, run: Path) -> None:
    out = run.with_name("made")
    command = ("calibrate", "bn", "--checkpoint", run, "--width", 0.6, *PLAIN, "--out", out)
    with exclusive_lock(out):
        second = main(*command)
    assert second.code == 2 and f"another oat-edge command is writing {out}" in second.err
    assert "width 0.6" not in second.out
    assert main(*command).code == 0


def test_it_is_not_a_run_to_resume(main: Main, run: Path) -> None:
    made = run.with_name("made")
    command = ("calibrate", "bn", "--checkpoint", run, "--width", 0.6, *PLAIN, "--out", made)
    assert main(*command).code == 0
    before = sha256_file(made / "checkpoint.safetensors")
    for again in (("train", "--resume", "--out", made), ("train", "--out", made), command):
        done = main(*again)
        assert done.code == 2 and "error:" in done.err
    assert sha256_file(made / "checkpoint.safetensors") == before
