from __future__ import annotations

import dataclasses

import pytest

from oat_edge.bench.table import UNKNOWN, rows_for_table


def width_of(headers, rows):
    """Width of a table with one space of padding and a rule around each cell."""
    columns = zip(headers, *rows, strict=True)
    return sum(max(map(len, column)) + 3 for column in columns) + 1


def test_one_line_of_strings_per_row(benched):
    headers, rows = rows_for_table(benched.report)
    assert len(rows) == len(benched.report.rows)
    assert all(len(row) == len(headers) for row in rows)
    assert all(isinstance(cell, str) for row in rows for cell in row)


def test_unknown_figures_are_a_dash_and_pinned_files_are_marked(benched):
    headers, rows = rows_for_table(benched.report)
    for cells, row in zip(rows, benched.report.rows, strict=True):
        cell = dict(zip(headers, cells, strict=True))
        assert (cell["RA %"] == UNKNOWN) == (row.worst is None)
        assert (cell["SA %"] == UNKNOWN) == (row.standard_accuracy is None)
        assert ("pinned" in cell["λ"]) == ("lam0.3" in row.artifact)
        assert (cell["Front"] == "●") == (row.pareto is True)


def test_fits_into_a_hundred_columns_with_large_figures(benched):
    row = benched.report.rows[0]
    worst_case = dataclasses.replace(
        row,
        width=0.75,
        lam=0.125,
        batch=1024,
        latency_ms=dataclasses.replace(row.latency_ms, p50=12345.6, p99=54321.9),
        throughput_ips=123456.0,
        memory_mb=12345.0,
        standard_accuracy=1.0,
        robust_accuracy={"worst": 1.0},
        pareto=True,
        status="unstable",
    )
    report = dataclasses.replace(benched.report, rows=(worst_case,))
    assert width_of(*rows_for_table(report)) <= 100


@pytest.mark.parametrize(
    ("p50", "text"), [(0.04123, "0.0412"), (0.5, "0.500"), (3.14159, "3.14"), (27.18, "27.2"),
                      (271.8, "272"), (12345.6, "12,346")],
)  # fmt: skip
def test_three_significant_figures(benched, p50, text):
    row = benched.report.rows[0]
    row = dataclasses.replace(row, latency_ms=dataclasses.replace(row.latency_ms, p50=p50))
    _, (cells,) = rows_for_table(dataclasses.replace(benched.report, rows=(row,)))
    assert cells[3] == text
