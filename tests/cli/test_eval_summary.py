from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from oat_edge.cli.eval_summary import print_evaluation
from oat_edge.evaluation.checks import TOO_WEAK, Check
from tests.evaluation.test_plots import make_report


def printed(report, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"), highlight=False)  # noqa: PTH123, SIM115
    print_evaluation(report, console)
    return console.export_text()


@pytest.mark.parametrize("lambdas", [(0.0, 1.0), (1 / 3, 0.123456)])
@pytest.mark.parametrize("pinned", [False, True])
def test_the_table_fits_a_hundred_columns(lambdas, pinned):
    """The longest figures there are: everything right, or nothing, and flagged."""
    report = make_report((0.5123, 1.0), lambdas, n=20, pinned=pinned)
    flagged = tuple(Check(name=str(i), flagged=True, evidence="seen") for i in range(7))
    longest = tuple(
        dataclasses.replace(
            row,
            standard_accuracy=1.0,
            standard_accuracy_interval=(0.839, 1.0),
            robust_accuracy=dict.fromkeys(row.robust_accuracy, 1.0),
            robust_accuracy_interval=dict.fromkeys(row.robust_accuracy, (0.839, 1.0)),
            checks=flagged,
            status="suspect",
        )
        for row in report.rows
    )
    text = printed(dataclasses.replace(report, rows=longest), 100)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "…" not in text and text.count("100.0 (84–100)") == 2 * 4
    for name in ("PGD-20", "APGD", "AutoAttack", "Square", "transfer", "worst", "checks"):
        assert name in text
    # Four rows, and the line below them.
    assert text.count("suspect") == 4 + 1 and "do not trust the RA of suspect rows" in text


@pytest.mark.parametrize("pinned", [False, True])
def test_a_line_about_a_pinned_row_names_its_file(pinned):
    """At one point there may be two rows, of two files."""
    report = make_report((1.0,), (0.3,), pinned=pinned)
    (row,) = report.rows
    checks = (
        Check(name="growing ε", flagged=True, evidence="seen"),
        Check(name="square", flagged=None, evidence=f"30 % and 40 %: {TOO_WEAK}"),
        Check(name="restarts", flagged=None, evidence="needs 50 images or more, there were 8"),
    )
    row = dataclasses.replace(row, checks=checks, warnings=("said",), status="suspect")
    lines = printed(dataclasses.replace(report, rows=(row,)), 200).splitlines()
    name = "1@0.3 (w.onnx)" if pinned else "1@0.3"
    for text in (
        "masked gradients? growing ε: seen",
        f"30 % and 40 %: {TOO_WEAK}",
        "said",
    ):
        assert lines.count(f"warning: {name}: {text}") == 1
    # Too weak is a warning, not one more thing that was not checked.
    assert "Not checked (restarts): needs 50 images or more, there were 8" in lines
    assert sum("Not checked" in line for line in lines) == 1
