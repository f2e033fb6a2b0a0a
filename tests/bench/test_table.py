from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from oat_edge.bench.table import UNKNOWN, rows_for_table
from oat_edge.cli.console import plain_table


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


def of_kinds(report, *kinds):
    """The report's rows once per (format, precision)."""
    rows = [
        dataclasses.replace(row, format=format, precision=precision, artifact=f"{i}-{row.artifact}")
        for i, (format, precision) in enumerate(kinds)
        for row in report.rows
    ]
    costs = [
        dataclasses.replace(
            cost, pinned_artifact=cost.pinned_artifact and f"{i}-{cost.pinned_artifact}"
        )
        for i, _ in enumerate(kinds)
        for cost in report.lambda_cost
    ]
    return dataclasses.replace(report, rows=tuple(rows), lambda_cost=tuple(costs))


KINDS = (("onnx", "fp16-emulated"), ("trt-rtx", "fp16"), ("trt", "int8"))


def test_a_column_tells_formats_and_precisions_unless_they_are_the_usual_ones(benched):
    headers, rows = rows_for_table(of_kinds(benched.report, *KINDS))
    column = [row[headers.index("Kind")] for row in rows]
    assert list(dict.fromkeys(column)) == ["onnx fp16~", "rtx fp16", "trt int8"]
    assert all(len(row) == len(headers) for row in rows)
    assert "Kind" in rows_for_table(of_kinds(benched.report, KINDS[0]))[0]
    assert "Kind" not in rows_for_table(benched.report)[0]


def test_with_kinds_too_it_prints_into_a_hundred_columns_with_large_figures(benched):
    large = [
        dataclasses.replace(
            row,
            width=0.75,
            batch=1024,
            latency_ms=dataclasses.replace(row.latency_ms, p50=12345.6, p99=54321.9),
            throughput_ips=123456.0,
            memory_mb=12345.0,
            standard_accuracy=1.0,
            robust_accuracy={"worst": 1.0},
            pareto=True,
            status="unstable",
        )
        for row in benched.report.rows
    ]
    report = of_kinds(dataclasses.replace(benched.report, rows=tuple(large)), *KINDS)
    headers, rows = rows_for_table(report)
    table = plain_table(None, headers)
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    lines = text.getvalue().splitlines()
    assert len(lines) == 1 + len(rows) and all("…" not in line for line in lines)
    assert any("0.3 pinned" in line and "unstable" in line for line in lines)
    assert any("123,456" in line and "onnx fp16~" in line for line in lines)


@pytest.mark.parametrize(
    ("p50", "text"), [(0.04123, "0.0412"), (0.5, "0.500"), (3.14159, "3.14"), (27.18, "27.2"),
                      (271.8, "272"), (12345.6, "12,346")],
)  # fmt: skip
def test_three_significant_figures(benched, p50, text):
    row = benched.report.rows[0]
    row = dataclasses.replace(row, latency_ms=dataclasses.replace(row.latency_ms, p50=p50))
    _, (cells,) = rows_for_table(dataclasses.replace(benched.report, rows=(row,)))
    assert cells[3] == text
