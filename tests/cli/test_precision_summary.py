"""Precisions side by side in words: what fits on a screen, and what is said of masking."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from oat_edge.cli.precision_summary import largest_drops, masking_lines, precision_table
from oat_edge.evaluation.outcome import Outcome
from oat_edge.evaluation.precisions import precision_drops
from tests.evaluation.test_precisions import artifact, bundle_of, outcomes, packs_on, ran

KNOTS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)


def text_of(table, width=100):
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()


@pytest.fixture
def drops(tmp_path):
    """fp16 is fp32; int8 loses 3 points of SA, and at λ=1 resists its own attack alone."""
    files = [artifact("fp32"), artifact("fp16"), artifact("int8")]
    fp32, _ = outcomes(1000, 0)
    int8 = {lam: outcomes(1000, 0, clean=0.92, own=0.7 if lam == 1 else 0.4)[1] for lam in KNOTS}
    same = dict.fromkeys(KNOTS, fp32)
    both = [
        ran(files[0], same), ran(files[1], same, "fp16-emulated"), ran(files[2], int8),
    ]  # fmt: skip
    return precision_drops(bundle_of(tmp_path, *files), packs_on(files[2].sha256), both)


def test_three_precisions_and_every_lambda_fit_in_100_columns(drops):
    text = text_of(precision_table(drops))
    assert "…" not in text and max(map(len, text.splitlines())) <= 100
    lines = text.splitlines()
    assert [word for word in lines[0].split() if "p" in word or "8" in word][:3] == [
        "fp32",
        "fp16~",
        "int8",
    ]
    zero = next(line for line in lines if line.startswith("0.5 ") and " 0 " in line)
    assert zero.count("95.0 / 40.0") == 2 and "92.0 / 40.0" in zero
    assert "3.0 (" in zero and zero.rstrip().endswith("no")
    last = next(line for line in lines if line.startswith("0.5 ") and " 1 " in line)
    assert last.rstrip().endswith("yes")
    assert sum("95.0 / 40.0" in line for line in lines) == len(KNOTS)


def test_the_worst_of_each_precision_is_told_with_its_interval(drops):
    half, int8 = largest_drops(drops)
    assert half.startswith("onnx fp16~ loses at most SA 0.0 (")
    assert int8.startswith("onnx int8 loses at most SA 3.0 (") and "at 0.5@0," in int8
    low, high = drops[-1].standard_accuracy.lost_interval
    assert f"({100 * low:.1f} to {100 * high:.1f}) at" in int8


def test_masking_is_said_plainly_and_its_absence_too(drops, tmp_path):
    (line,) = masking_lines(drops)
    assert line.startswith("warning: 0.5@1: w0.50-int8.onnx only masks gradients: ")
    assert "int8 is right on 70.0 % of 1000, fp32 on 40.0 %" in line
    (line,) = masking_lines([one for one in drops if one.lam < 1])
    assert line == "Quantisation masks no gradients: no sign of it at 5 operating points."
    assert list(masking_lines([one for one in drops if one.precision != "int8"])) == []
    right = np.ones(100, dtype=bool)
    alone = [ran(artifact("int8"), dict.fromkeys(KNOTS, Outcome(clean=right)))]
    missing = precision_drops(bundle_of(tmp_path), None, alone)
    (line,) = masking_lines(missing)
    assert "at 0.5@0 and 5 more: no fp32 file of width 0.5 ran beside it" in line
    assert list(largest_drops(missing)) == []
    widths = [ran(artifact("int8", width=w), dict.fromkeys(KNOTS, Outcome(clean=right)))
              for w in (0.5, 0.75, 1.0)]  # fmt: skip
    (line,) = masking_lines(precision_drops(bundle_of(tmp_path), None, widths))
    assert "at 0.5@0 and 17 more: no fp32 file of width 0.5 ran beside it" in line


def test_a_table_of_several_widths_and_formats_names_them(tmp_path):
    files, both = [], []
    for width in (0.5, 1.0):
        for format in ("onnx", "trt"):
            for precision in ("fp32", "int8"):
                one = artifact(precision, width=width, format=format)
                files.append(one)
                both.append(ran(one, dict.fromkeys(KNOTS, outcomes(100, 0)[0])))
    text = text_of(precision_table(precision_drops(bundle_of(tmp_path, *files), None, both)))
    assert "…" not in text and max(map(len, text.splitlines())) <= 100
    assert text.count("trt") == text.count("onnx") == 2 * len(KNOTS)
