from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from oat_edge.bench.run import bench_bundle
from oat_edge.bench.table import rows_for_table
from oat_edge.cli.summary import print_report
from oat_edge.evaluation.transfer import largest_gain
from tests.bench.conftest import QUICKEST


@pytest.fixture(scope="module")
def report(tiny_bundle):
    return bench_bundle(tiny_bundle, QUICKEST, widths=(1.0,), lambdas=(0.0, 0.3, 1.0))[0]


def printed(report, width=1000):
    file = io.StringIO()
    print_report(report, Console(file=file, width=width, highlight=False, markup=False))
    return file.getvalue()


def test_transfer_line_is_the_largest_gain_of_the_grids(report):
    gain, grid, target, source = largest_gain(report.transfer)
    (line,) = [line for line in printed(report).splitlines() if line.startswith("Transfer: ")]
    if gain > 0:
        assert f"at most {100 * gain:.1f} points ({target} ← {source}, {grid.attack})" in line
    else:
        assert "nowhere" in line
    together = max(row.robust_accuracy["pgd20"] - row.worst for row in report.knob_rows)
    assert f"those of all together by up to {100 * together:.1f}" in line
    assert together >= gain


def test_a_gain_is_told_with_its_target_and_source(report):
    (grid,) = report.transfer
    shares = [list(row) for row in grid.robust_accuracy]
    here, there = grid.targets[0], grid.sources[-1]
    shares = [[1.0] * len(row) for row in shares]
    shares[0][-1] = 0.875
    made_up = dataclasses.replace(grid, robust_accuracy=tuple(map(tuple, shares)))
    text = printed(dataclasses.replace(report, transfer=(made_up,)))
    assert f"lower an attack's RA by at most 12.5 points ({here} ← {there}, pgd20)" in text


def test_several_attacks_on_a_point_are_not_taken_for_transfer(report):
    rows = tuple(
        dataclasses.replace(
            row, robust_accuracy={**row.robust_accuracy, "square": 0.0, "worst": 0.0}
        )
        for row in report.rows
    )
    assert "together" not in printed(dataclasses.replace(report, rows=rows))


def test_without_grids_transfer_is_not_spoken_of(report):
    rows = tuple(
        dataclasses.replace(
            row,
            robust_accuracy={k: v for k, v in row.robust_accuracy.items() if k != "transfer"},
        )
        for row in report.rows
    )
    text = printed(dataclasses.replace(report, rows=rows, transfer=()))
    assert "ransfer" not in text and "worst case over pgd20, an upper bound" in text


def test_table_fits_a_terminal(report):
    headers, rows = rows_for_table(report)
    text = printed(report, width=100)
    (head,) = [line for line in text.splitlines() if line.startswith("Width")]
    assert all(name in head for name in headers) and len(head) <= 100
    assert len(rows) == len(report.rows)
