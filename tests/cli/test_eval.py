"""`oat-edge eval` as a user runs it, on a trained run and on a bundle."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from oat_edge.evaluation.report import REPORT, SAMPLES, EvalReport
from oat_edge.files import point_latest
from tests.evaluation.test_plots import ALL

FEW = ("--samples", 8, "--queries", 20)


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy of a trained run: λ 0 and 1, one width."""
    return Path(shutil.copytree(trained_run, tmp_path / "runs" / "trained"))


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundles" / "tiny"))


def check_fine(ended):
    assert ended.code == 0, ended
    assert ended.err == "" and "\x1b" not in ended.out and "…" not in ended.out


def test_a_run_is_attacked_and_the_report_lies_in_it(main, run):
    ended = main("eval", run, "--attack", "pgd,square", *FEW)
    check_fine(ended)
    report = EvalReport.load(run / REPORT)
    assert [(row.width, row.lam) for row in report.rows] == [(1.0, 0.0), (1.0, 1.0)]
    assert report.samples_file == SAMPLES and (run / SAMPLES).is_file()
    assert report.rows[0].num_samples == 8 and report.settings["eps"] == 24 / 255
    assert f"report: {run / REPORT}" in ended.out
    for text in (
        "8 images", "ε 24/255", "SA", "PGD-20", "Square", "worst", "fast mode (pgd20; square)",
        "Wilson", "upper bound", "Masked gradients", "100 %  transfer",
    ):  # fmt: skip
        assert text in ended.out
    for row in report.rows:
        assert f"{100 * row.robust_accuracy['worst']:.1f} (" in ended.out


def test_by_default_every_attack_is_made(main, run):
    """On one image that is right and one point: AutoAttack takes seconds."""
    ended = main("eval", run, "--samples", 2, "--queries", 20, "--lambda", "1")
    check_fine(ended)
    (row,) = EvalReport.load(run / REPORT).rows
    assert list(row.robust_accuracy) == [*ALL, "worst"]
    shares = row.robust_accuracy
    assert shares["worst"] <= shares["autoattack"] <= shares["apgd"]
    assert "AutoAttack standard." in ended.out and "fast" not in ended.out
    # And the second time nothing is left to do.
    again = main("eval", run, "--samples", 2, "--queries", 20, "--lambda", "1")
    check_fine(again)
    assert EvalReport.load(run / REPORT).settings["cells"]["new"] == 0


def test_json_on_standard_output_is_nothing_else(main, run):
    ended = main("eval", run, "--attack", "pgd", *FEW, "--lambda", 1, "--json", "-")
    assert ended.code == 0 and "PGD-20" in ended.err
    value = json.loads(ended.out, parse_constant=lambda name: pytest.fail(name))
    assert value["schema"] == "oat-edge/eval/1"
    assert value == json.loads((run / REPORT).read_text())


def test_a_json_file_elsewhere_says_where_the_samples_are(main, run):
    ended = main("eval", run, "--attack", "pgd", *FEW, "--json", "out/deep/a.json")
    check_fine(ended)
    report = EvalReport.load(Path("out/deep/a.json"))
    with np.load(Path("out/deep") / report.samples_file) as file:
        assert len(file["labels"]) == 8


def test_plots_are_drawn_and_named(main, run):
    ended = main("eval", run, "--attack", "pgd", *FEW, "--plot", "a.svg")
    check_fine(ended)
    assert sorted(path.name for path in Path().iterdir()) == ["a-transfer.svg", "a.svg"]
    assert "plot: a.svg" in ended.out and "plot: a-transfer.svg" in ended.out


def test_the_newest_run_is_meant_when_none_is_named(main, run):
    shutil.copytree(run, "runs/mine")
    point_latest(Path("runs/mine"))
    check_fine(main("eval", "--attack", "pgd", *FEW))
    assert Path("runs/mine", REPORT).is_file()


def test_a_run_that_appears_meanwhile_does_not_get_the_report(main, run, monkeypatch):
    """`latest` is re-pointed by a training that ends while the evaluation runs."""
    import oat_edge.evaluation.network as network

    shutil.copytree(run, "runs/mine")
    Path("runs/other").mkdir()
    point_latest(Path("runs/mine"))
    own = network.evaluate_network

    def slow(*arguments, **options):
        evaluation = own(*arguments, **options)
        point_latest(Path("runs/other"))
        return evaluation

    monkeypatch.setattr(network, "evaluate_network", slow)
    ended = main("eval", "--attack", "pgd", *FEW)
    check_fine(ended)
    assert Path("runs/mine", REPORT).is_file() and list(Path("runs/other").iterdir()) == []
    assert "runs/mine/" in ended.out


def test_fresh_forgets(main, run):
    for options, new in (((), 4), ((), 0), (("--fresh",), 4)):
        check_fine(main("eval", run, "--attack", "pgd", *FEW, *options))
        assert EvalReport.load(run / REPORT).settings["cells"]["new"] == new


def test_a_bundle_is_replayed_and_attacked(main, bundle):
    ended = main("eval", bundle, "--queries", 5, "--samples", 10)
    check_fine(ended)
    report = EvalReport.load(bundle / REPORT)
    assert len(report.rows) == 2 * 6 + 2 and sum(row.pinned for row in report.rows) == 2
    assert "pinned" in ended.out
    assert report.settings["mode"].startswith(
        "fast mode (pgd20 packs (8-bit, crafted on the network)"
    )
    assert f"{report.settings['mode']}. Accuracies" in " ".join(ended.out.split())
    checks = [check for row in report.rows for check in row.checks if check.flagged is None]
    assert checks and all(check.evidence for check in checks)
    assert "Traceback" not in ended.out
    # The packs hold PGD-20 alone: the others are left out, and named.
    assert len(report.warnings) == 2
    for attack in ("apgd", "autoattack"):
        assert f"warning: {attack}: left out, the bundle has no pack of it" in ended.out


@pytest.mark.parametrize("attacks", ["pgd,apgd,autoattack,square", "apgd"])
def test_attacks_of_a_bundle_that_are_named_must_be_there(attacks, main, bundle):
    before = sorted(bundle.rglob("*"))
    ended = main("eval", bundle, "--attack", attacks, *FEW)
    (line,) = ended.err.splitlines()
    assert ended.code == 2 and ended.out == "" and sorted(bundle.rglob("*")) == before
    assert "has no apgd pack (it has pgd20): oat-edge export --attack apgd" in line


REFUSED = [
    ("--attack pgdd", "attack is 'pgdd': expected a list of pgd20", "did you mean 'pgd'?"),
    ("--attack all,foo", "attack is 'foo': expected a list of pgd20"),
    ("--samples 0", "samples is 0"),
    ("--queries 0", "queries is 0"),
    ("--eps 8", "did you mean 8/255?"),
    ("--eps 8/0", "eps is '8/0'"),
    ("--eps nan", "eps is 'nan'"),
    ("--width 0.6", "width 0.6 is not there: have 1"),
    ("--lambda 1.5", "lambda is 1.5"),
    ("--lambda x", "lambda is 'x'"),
    ("--plot x.pdf", "plot is 'x.pdf'"),
    ("--plot x", "plot is 'x'"),
    ("--plot folder.png", "folder.png is a folder"),
    ("--plot held.png", "held-transfer.png is a folder"),
    ("--json .", ". is a folder or a device"),
    ("--json /dev/null", "/dev/null is a folder or a device"),
    ("--seed -1", "'--seed'"),
    ("--device tpu", "device is 'tpu'"),
    ("--eps 0.003 --attack pgd,square", "under one 8-bit level"),
    ("--nope", "--nope"),
]


@pytest.mark.parametrize(
    ("what", "arguments", "parts"),
    [
        (what, one, rest)
        for one, *rest in REFUSED
        for what in ("run", "bundle")
        # Another ε is refused for what it is on a run, and for being another on a bundle.
        if (what, "--eps 0.003" in one) != ("bundle", True)
    ],
)
def test_a_slip_is_one_line_and_leaves_nothing(what, arguments, parts, main, request):
    if what == "bundle":
        parts = [part.replace("have 1", "have 0.5, 1") for part in parts]
    path = request.getfixturevalue(what)
    Path("folder.png").mkdir()
    Path("held-transfer.png").mkdir()
    before = sorted(path.rglob("*"))
    ended = main("eval", path, *arguments.split())
    assert ended.code == 2 and ended.out == "", ended
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ") and len(line) < 400
    for part in parts:
        assert part in line
    assert sorted(path.rglob("*")) == before
    assert {path.name for path in Path().iterdir()} == {"folder.png", "held-transfer.png"}


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("runs/latest", "no run and no bundle at runs/latest: make one with `oat-edge train`"),
        ("nowhere", "no bundle at nowhere"),
        (".", "there is no checkpoint"),
    ],
)
def test_where_there_is_nothing_it_says_so(path, part, main):
    ended = main("eval", *([] if path == "runs/latest" else [path]))
    assert ended.code == 2 and part in ended.err and len(ended.err.splitlines()) == 1


def test_cuda_is_refused_where_it_is_not(main, run, bundle, no_gpu):
    for path in (bundle, run):
        ended = main("eval", path, "--device", "cuda")
        (line,) = ended.err.splitlines()
        assert ended.code == 3 and "device is 'cuda'" in line and "use --device cpu" in line


def test_without_pyautoattack_the_others_still_run(main, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    ended = main("eval", run, *FEW)
    (line,) = ended.err.splitlines()
    assert ended.code == 3 and line.endswith("pip install 'oat-edge[attack]'")
    check_fine(main("eval", run, "--attack", "pgd,square", *FEW))


def test_a_killed_evaluation_goes_on_with_the_same_command(main, run, child_environment, tmp_path):
    """SIGKILL, no chance to tidy up: in the midst of a cell's computation."""
    whole = Path(shutil.copytree(run, tmp_path / "whole" / "trained"))
    arguments = ["eval", "--attack", "pgd,square", "--samples", "12", "--queries", "400"]
    check_fine(main(*arguments, whole))
    process = subprocess.Popen(
        [sys.executable, "-m", "oat_edge", *arguments, str(run)],
        cwd=tmp_path, env=child_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        for _ in range(1200):
            if len([*run.glob("eval/*/w*.npz")]) >= 2:
                break
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL and not (run / REPORT).exists()
    done = {path: path.stat().st_mtime_ns for path in run.glob("eval/*/w*.npz")}
    check_fine(main(*arguments, run))
    reports = [EvalReport.load(folder / REPORT) for folder in (run, whole)]
    assert reports[0].settings["cells"]["done_before"] == len(done) >= 2
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    rows = [[dataclasses.replace(row, seconds={}) for row in one.rows] for one in reports]
    assert rows[0] == rows[1] and reports[0].transfer == reports[1].transfer


def test_ctrl_c_is_one_word_and_the_same_command_goes_on(main, run, monkeypatch):
    from oat_edge.evaluation.cells import CellStore

    own, saved = CellStore.save, []

    def stop(self, name, *rest):
        own(self, name, *rest)
        saved.append(name)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(CellStore, "save", stop)
    ended = main("eval", run, "--attack", "pgd", *FEW)
    assert ended.code == 130 and ended.err == "interrupted\n"
    check_fine(main("eval", run, "--attack", "pgd", *FEW))
    assert EvalReport.load(run / REPORT).settings["cells"] == {"done_before": 2, "new": 2}
