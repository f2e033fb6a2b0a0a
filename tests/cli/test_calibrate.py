"""`oat-edge calibrate` as a user runs it."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from oat_edge import open_runner
from oat_edge.calib.decision import _about
from oat_edge.calib.goal import Goal
from oat_edge.calib.operating_point_file import OperatingPointFile
from oat_edge.cli.calibrate_summary import _why
from tests.bench.made_up import change, latency, make_report
from tests.calib.points import WIDE, make_bundle, measured_plainly, point, save


def robust_of(bundle, lam):
    return measured_plainly(bundle, WIDE, lam)[1]


def test_without_arguments_it_explains_the_front_and_takes_the_most_robust(here, main):
    ended = main("calibrate")
    assert ended.code == 0 and ended.err == "", ended
    assert "goal: no constraints" in ended.out and "best RA, then SA, then p50" in ended.out
    assert "on the front: " in ended.out and "* width 1, λ 1, fp32" in ended.out
    lines = ended.out.splitlines()
    assert len(lines) <= 25 and max(map(len, lines)) <= 100 and "\x1b" not in ended.out
    file = OperatingPointFile.load("bundles/latest/operating_point.json")
    assert (file.artifact, file.lam) == (WIDE, 1.0)
    assert file.figures.robust_accuracy == robust_of(here, 1.0)


def test_lambda_between_the_knots_is_measured_and_what_is_written_opens(here, main):
    bound = max(robust_of(here, 0.0), robust_of(here, 0.3)) + 0.01
    ended = main("calibrate", "--min-robust", bound, "--prefer", "standard", "--json", "out.json")
    assert ended.code == 0, ended
    assert f"measuring λ of {WIDE}" in ended.out
    assert f"λ between the knots, measured on this machine: {WIDE}" in ended.out
    assert "lies between knots" in ended.out
    assert len(ended.out.splitlines()) <= 25
    file = OperatingPointFile.load("bundles/latest/operating_point.json")
    assert 0.3 < file.lam < 1 and file.figures.measured_between_knots
    plain = measured_plainly(here, WIDE, file.lam)
    assert (file.figures.standard_accuracy, file.figures.robust_accuracy) == plain
    assert plain[0] > measured_plainly(here, WIDE, 1.0)[0]
    value = json.loads(Path("out.json").read_text())
    assert value["operating_point"] == file.to_json()
    assert file.lam in value["searched"][WIDE] and value["nearest_miss"] is None
    with open_runner("bundles/latest", operating_point=file) as runner:
        assert runner.default_lambda == file.lam

    knots = main("calibrate", "--min-robust", bound, "--prefer", "standard", "--no-search",
                 "--out", "knots.json")  # fmt: skip
    assert knots.code == 0 and "λ at the knots only" in knots.out
    assert OperatingPointFile.load("knots.json").lam == 1.0


def test_queries_run_square_at_what_is_chosen(here, main):
    ended = main("calibrate", "--queries", 20, "--max-lambdas", 1)
    assert ended.code == 0, ended
    file = OperatingPointFile.load("bundles/latest/operating_point.json")
    assert "square" in file.figures.attacks
    assert file.figures.robust_accuracy <= measured_plainly(here, file.artifact, file.lam)[1]


def test_a_report_without_its_bundle_gives_knots_and_says_so(measured_bundle, main):
    shutil.copy(measured_bundle.path / "report.json", "report.json")
    ended = main("calibrate", "report.json", "--min-robust", 0.3)
    assert ended.code == 0
    assert "none between them was measured: the bundle is not at hand (--bundle)" in ended.out
    assert 'open_runner("BUNDLE", operating_point="operating_point.json")' in ended.out
    with_bundle = main(
        "calibrate", "report.json", "--bundle", measured_bundle.path, "--out", "b.json"
    )
    assert with_bundle.code == 0 and "λ between the knots" in with_bundle.out


def test_exit_7_with_the_nearest_miss(here, main):
    ended = main("calibrate", "--min-robust", 0.99, "--max-latency-ms", 5, "--json", "miss.json")
    assert ended.code == 7 and "runners-up" not in ended.out
    (line,) = ended.err.splitlines()
    assert line.startswith("error: no operating point meets the goal (no point meets the RA limit)")
    lacking = 100 * (0.99 - robust_of(here, 1.0))
    assert f"wanted ≥ 99.0 %: {lacking:.1f} points too low (p50 latency met)" in line
    value = json.loads(Path("miss.json").read_text())
    assert value["operating_point"] is None
    assert value["nearest_miss"]["margins"]["robust_accuracy"] == pytest.approx(-lacking / 100)
    assert not Path("bundles/latest/operating_point.json").exists()


def test_the_file_of_an_earlier_choice_is_not_taken_for_the_answer(here, main):
    assert main("calibrate", "--no-search").code == 0
    earlier = Path("bundles/latest/operating_point.json").read_bytes()
    ended = main("calibrate", "--no-search", "--min-robust", 0.99)
    (line,) = ended.err.splitlines()
    assert ended.code == 7
    assert line.endswith("; bundles/latest/operating_point.json is of an earlier choice")
    assert Path("bundles/latest/operating_point.json").read_bytes() == earlier


@pytest.mark.parametrize("goal", [[], ["--min-robust", 0.999]])
def test_json_on_standard_output_is_nothing_else(goal, here, main):
    ended = main("calibrate", *goal, "--json", "-")
    value = json.loads(ended.out, parse_constant=lambda name: pytest.fail(name))
    assert value["schema"] == "oat-edge/calibrate/1" and ended.code == (7 if goal else 0)
    assert "best RA" in ended.err


def test_confident_asks_for_the_lower_end_of_the_interval(here, main):
    bound = robust_of(here, 1.0) - 0.001
    loose = main("calibrate", "--min-robust", bound)
    assert loose.code == 0 and "only within its 95 % interval" in loose.out
    strict = main("calibrate", "--min-robust", bound, "--confident")
    assert strict.code == 7 and "RA (lower end)" in strict.err


def test_pinned_files_are_taken_when_asked_for(here, main):
    ended = main("calibrate", "--prefer", "latency")
    assert ended.code == 0 and "left out: 1 with λ folded in (--pinned)" in ended.out
    ended = main("calibrate", "--prefer", "latency", "--pinned", "--out", "p.json")
    assert ended.code == 0 and "λ 0.3 (folded in)" in ended.out
    assert OperatingPointFile.load("p.json").artifact == "w0.50-lambda0.3-fp32.onnx"


def test_no_figure_no_limit_met_and_unstable_rows_warn(main):
    report = make_report(energy_mj=None, batches=(1,), status="unstable")
    save(report, Path("report.json"))
    ended = main("calibrate", "report.json", "--max-energy-mj", 5)
    assert ended.code == 7 and "energy is not known, and so meets no limit" in ended.err
    assert "6 of 6 points have no energy" in ended.out
    ended = main("calibrate", "report.json")
    assert ended.code == 0 and "warning: its latency was unstable" in ended.out


def test_the_screen_stays_small_with_many_files_and_warnings(main):
    kinds = tuple((name, precision) for name in ("onnx", "trt") for precision in ("fp32", "int8"))
    widths, lambdas = tuple(k / 10 for k in range(1, 11)), (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)
    report = make_report(widths=widths, lambdas=lambdas, kinds=kinds, status="unstable")
    rows = tuple(
        dataclasses.replace(
            row,
            latency_ms=latency(10 * row.width + 0.123456789),
            robust_accuracy={"pgd20": 0.4, "worst": round(0.3 + row.width / 5 + row.lam / 9, 3)},
            standard_accuracy=round(0.95 - row.lam / 7, 3),
        )
        for row in report.rows
    )
    save(dataclasses.replace(report, rows=rows), Path("report.json"))
    for goal in ([], ["--min-robust", 0.45, "--max-latency-ms", 8, "--max-energy-mj", 5]):
        ended = main("calibrate", "report.json", *goal)
        lines = ended.out.splitlines()
        assert ended.code == 0 and len(lines) <= 25 and max(map(len, lines)) <= 100, ended.out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["gone.json"], "there is no bench report at gone.json"),
        (["bundles/latest", "--min-robust", "40"], "min_robust is 40: expected a share"),
        (["bundles/latest", "--prefer", "speed"], "prefer is 'speed'"),
        (["bundles/latest", "--percentile", "p90"], "percentile is 'p90'"),
        (["bundles/latest", "--batch", "3"], "batch is 3: the reports have 1, 16"),
        (["bundles/latest", "--device", "orin"], "device is 'orin': the reports are of cpu"),
        (["bundles/latest", "--max-latency-ms", "-1"], "max_latency_ms is -1"),
        (["bundles/latest", "--out", "/dev/null"], "/dev/null is a folder or a device"),
        (["bundles/latest", "--no-search", "--queries", "9"], "leave out --no-search"),
        (["bundles/latest", "--nonsense"], "No such option: --nonsense"),
        (["bundles/latest", "--bundle", "nowhere"], "there is no bundle at nowhere"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(arguments, part, here, main):
    ended = main("calibrate", *arguments)
    assert ended.code == 2 and ended.out == ""
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ") and part in line


def test_a_bundle_of_another_network_is_refused(here, main):
    report = change(make_report(), lambda row: True)
    save(report, Path("other.json"))
    Path("bundles/latest/manifest.json").unlink()
    other = dataclasses.replace(
        report, bundle=dataclasses.replace(report.bundle, checkpoint_sha256="d" * 64)
    )
    save(other, Path("other.json"))
    make_bundle(Path("b"))
    ended = main("calibrate", "other.json", "--bundle", "b")
    assert ended.code == 2 and "name the bundle that was benched" in ended.err


def test_help_and_the_other_subcommand_are_there(main):
    page = main("calibrate", "--help")
    assert page.code == 0 and "--max-latency-ms" in page.out and "calibrate bn" in page.out
    assert page.out.startswith("Usage: oat-edge calibrate [OPTIONS] ")
    page = main("calibrate", "bn", "--help")
    assert page.out.startswith("Usage: oat-edge calibrate bn [OPTIONS]")
    assert page.code == 0 and "--width" in page.out and "--max-latency-ms" not in page.out


def test_a_report_of_1000_rows_is_answered_without_torch_or_matplotlib(command, tmp_path):
    widths, lambdas = tuple(k / 20 for k in range(1, 21)), tuple(k / 24 for k in range(25))
    report = make_report(widths=widths, lambdas=lambdas, pinned=())
    assert len(report.rows) == 1000
    save(report, tmp_path / "report.json")
    done = command("calibrate", "report.json", "--json", "-", cwd=tmp_path, PYTHONVERBOSE="1")
    assert done.returncode == 0 and json.loads(done.stdout)["num_points"] == 500
    for name in ("torch", "matplotlib", "onnx", "onnxruntime"):
        assert f"import '{name}'" not in done.stderr
    assert "import 'oat_edge.calib.choose'" in done.stderr


def test_the_screen_shows_robustness_as_it_counts():
    """The interval and the margin beside it are of that figure, too."""
    between = point(lam=0.5, robust_accuracy=0.46, robust_ceiling=0.42, between_knots=True)
    screen = io.StringIO()
    Console(file=screen, width=100).print(_why(between, Goal(min_robust=0.4)))
    (line,) = [line for line in screen.getvalue().splitlines() if "RA" in line]
    assert "42.0 %" in line and "2.0 points" in line and "46" not in line
    (told,) = _about(between, Goal(), 0)
    assert "(measured 46.0 %)" in told
