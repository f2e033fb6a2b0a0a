"""`oat-edge compare` as a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from oat_edge.bundle import Bundle
from oat_edge.files import point_latest
from tests.evaluation.changes import (
    broken_at,
    changed,
    in_half,
    listed,
    one_weight,
    other_classes,
)
from tests.evaluation.test_compare import KNOB, engine

FEW = ("--samples", 6)


@pytest.fixture
def here(main, tiny_bundle, tiny_run):
    """A folder with the run and its bundle, as `train` and `export` leave them."""
    for source, kind in ((tiny_run, "runs"), (tiny_bundle.path, "bundles")):
        shutil.copytree(source, f"{kind}/tiny")
        point_latest(Path(kind, "tiny"))
    return Path.cwd()


@pytest.fixture
def bundle(here):
    return Bundle.open("bundles/latest")


def test_what_was_exported_agrees_and_the_table_says_so(here, main):
    ended = main("compare", *FEW)
    assert ended.code == 0 and ended.err == "", ended
    assert "\x1b" not in ended.out and "reference: torch-cpu, unfolded network" in ended.out
    assert "24 images for files with one λ" in ended.out and "knots 0, 0.1" in ended.out
    assert "off knots 0.001, 0.05, 0.15" in ended.out and "alone and mixed" in ended.out
    rows = [line for line in ended.out.splitlines() if line.startswith("w")]
    assert len(rows) == 4
    for row in rows:
        assert "ort-cpu" in row and "100.00" in row and row.rstrip().endswith("ok")


def test_no_line_of_the_table_is_over_100_columns(bundle, main):
    """With the longest names and precisions that an export gives."""
    bundle, _ = in_half(bundle, "w0.50-fp32-lambda1.onnx")
    longest = "w0.75-fp16-lambda0.3.rtx.engine"
    in_half(bundle, KNOB)
    ended = main("compare", *FEW)
    table = [line.rstrip() for line in ended.out.splitlines() if "  ort-cpu  " in line]
    files = [line.split()[0] for line in table]
    room = len(longest) - max(map(len, files)) + len("tensorrt-rtx") - len("ort-cpu")
    assert len(table) == 6 and max(map(len, table)) + room <= 100


def test_a_changed_file_ends_with_5_and_its_name_and_the_report_is_there(bundle, main):
    changed(bundle, KNOB, one_weight)
    ended = main("compare", *FEW, "--json", "deep/out.json")
    assert ended.code == 5
    (line,) = ended.err.splitlines()
    assert line.startswith(f"error: {KNOB} in onnxruntime-cpu differs from the reference by 0.01")
    assert "allowed is 0.0001" in line and "rows fail" not in line
    rows = [text for text in ended.out.splitlines() if text.startswith("w")]
    assert len(rows) == 4 and sum("FAILS" in text for text in rows) == 1
    value = json.loads(Path("deep/out.json").read_text())
    assert [row["passed"] for row in value["rows"]].count(False) == 1 and len(value["rows"]) == 4


def test_of_several_failures_the_worst_is_named(bundle, main):
    changed(bundle, KNOB, one_weight)
    changed(bundle, "w1.00-fp32.onnx", broken_at(0.3, float("nan")))
    ended = main("compare", *FEW)
    assert ended.code == 5 and "NaN/inf" in ended.out
    assert "error: w1.00-fp32.onnx" in ended.err and "not finite numbers" in ended.err
    assert "6 of 72 (image, λ) pairs, as at λ=0.3 (2 of 4 rows fail)" in ended.err


def test_half_precision_is_said_to_be_emulated(bundle, main):
    in_half(bundle, KNOB)
    ended = main("compare", "--width", 0.5, "--precision", "fp16,fp32", "--samples", 24)
    assert ended.code == 0 and "fp16-emulated: a CPU computes" in ended.out
    assert "of 288, 1 may differ" in ended.out


def test_half_precision_with_other_classes_ends_with_5(bundle, main):
    _, half = in_half(bundle, KNOB, other_classes)
    ended = main("compare", "--precision", "fp16", *FEW)
    assert ended.code == 5 and f"error: {half}" in ended.err
    assert "of 72 (image, λ) pairs, expected 99.5 % or more" in ended.err


def test_json_on_standard_output_is_nothing_else_even_after_a_failure(bundle, main):
    changed(bundle, KNOB, one_weight)
    ended = main("compare", *FEW, "--json", "-")
    value = json.loads(ended.out, parse_constant=lambda name: pytest.fail(name))
    assert ended.code == 5 and value["schema"] == "oat-edge/compare/1"
    assert "FAILS" in ended.err and ended.err.splitlines()[-1].startswith("error: ")


def test_options_choose_what_is_compared(here, main):
    arguments = ("--width", "0.5", "--lambda", "0.25,1", "--format", "onnx", "--seed", 3)
    ended = main("compare", "bundles/tiny", *FEW, *arguments, "--json", "out.json")
    value = json.loads(Path("out.json").read_text())
    assert ended.code == 0 and {row["width"] for row in value["rows"]} == {0.5}
    assert [one["lambda"] for one in value["rows"][0]["by_lambda"]] == [0.25, 1.0]
    assert value["settings"]["formats"] == ["onnx"] and value["settings"]["seed"] == 3
    main("compare", *FEW, "--lambda", "knots", "--json", "out.json")
    value = json.loads(Path("out.json").read_text())
    assert value["settings"]["lambdas"] == value["settings"]["lambda_knots"]


def test_engines_are_listed_below_the_table(bundle, main):
    listed(bundle, engine(bundle))
    ended = main("compare", *FEW)
    assert ended.code == 0
    assert "not run (needs --device cuda): w0.50-fp32.trt.engine" in ended.out


def test_without_a_gpu_its_back_ends_are_an_error(here, main, no_gpu):
    ended = main("compare", *FEW, "--device", "cuda", "--json", "out.json")
    assert ended.code == 3 and len(ended.err.splitlines()) == 1
    assert not Path("out.json").exists()


def test_the_run_of_that_name_is_found_though_another_is_newer(here, main, trained_run):
    shutil.copytree(trained_run, "runs/newer")
    point_latest(Path("runs/newer"))
    assert "reference: torch-cpu, unfolded network of run tiny" in main("compare", *FEW).out
    Path("runs/tiny").rename("runs/renamed")
    ended = main("compare", *FEW)
    assert ended.code == 0 and "reference: onnxruntime-cpu, fp32 ONNX files" in ended.out
    assert "not the trained network itself: no run in runs/ has checkpoint" in ended.out
    assert "it is the reference itself" in ended.out
    ended = main("compare", *FEW, "--checkpoint", "runs/renamed")
    assert ended.code == 0 and "torch-cpu" in ended.out
    ended = main("compare", *FEW, "--checkpoint", "runs/newer")
    assert ended.code == 2 and "is not what bundle tiny was made from" in ended.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("nowhere", "there is no bundle at nowhere"),
        ("--checkpoint nowhere", "there is no checkpoint at nowhere"),
        ("--device tpu", "device is 'tpu': expected cpu, cuda"),
        ("--width 0.3", "width 0.3 is not there: have 0.5, 1"),
        ("--width wide", "width is 'wide'"),
        ("--lambda 2", "lambda is 2"),
        ("--lambda nan", "lambda is 'nan'"),
        ("--format tflite", "format is 'tflite': expected onnx, trt, trt-rtx"),
        ("--format trt", "nothing of these widths, formats and precisions that runs on cpu"),
        ("--precision fp8", "precision is 'fp8'"),
        ("--samples 0", "samples is 0"),
        ("--json bundles", "bundles is a folder"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_2(arguments, part, here, main):
    ended = main("compare", *arguments.split())
    assert ended.code == 2 and len(ended.err.splitlines()) == 1, ended
    assert part in ended.err and ended.out == ""


HIDDEN = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
from oat_edge.cli import main
main()
"""


@pytest.fixture
def without(here, child_environment):
    """Run `oat-edge compare` where these packages are not installed."""

    def run(packages, *arguments):
        return subprocess.run(
            [sys.executable, "-c", HIDDEN, packages, "compare", *map(str, (*FEW, *arguments))],
            cwd=here,
            env=child_environment,
            capture_output=True,
            text=True,
        )

    return run


TORCH = "torch,onnx,onnxscript,safetensors,sklearn,scipy"


def test_without_torch_the_files_are_compared_with_each_other(without, bundle):
    in_half(bundle, KNOB)
    done = without(TORCH, "--json", "out.json")
    assert done.returncode == 0 and done.stderr == ""
    assert "reference: onnxruntime-cpu" in done.stdout
    assert "torch is not installed" in done.stdout and "pip install" in done.stdout
    value = json.loads(Path("out.json").read_text())
    assert len(value["rows"]) == 5
    for row in value["rows"]:
        assert row["passed"] is (None if row["is_reference"] else True)
    assert "torch is not installed" in value["reference"]["reason"]


def test_without_torch_a_named_run_is_an_error(without, here):
    done = without(TORCH, "--checkpoint", "runs/tiny")
    assert done.returncode == 3 and "torch is not installed" in done.stderr


def test_without_onnx_runtime_there_is_nothing_to_compare(without, here):
    done = without("onnxruntime")
    assert done.returncode == 3 and "onnxruntime is not installed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_is_no_bundle(main, tiny_run):
    ended = main("compare", tiny_run)
    (line,) = ended.err.splitlines()
    assert ended.code == 2 and "is a run: compare takes the bundle" in line
