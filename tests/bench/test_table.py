from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.bench.report import LambdaCost
from oat_edge.bench.table import (
    FRONT,
    UNKNOWN,
    accuracy_tables,
    cost_table,
    figures,
    label_files,
)
from tests.bench.made_up import POWER, change, fail, latency, make_report, row_of

LARGE = st.floats(1e-6, 1e9)
SHARE = st.one_of(st.none(), st.floats(0, 1))
KINDS = (
    ("onnx", "fp32"), ("onnx", "fp16-emulated"), ("trt-rtx", "fp16"), ("trt", "int8"),
    ("onnx", "int8-emulated"),
)  # fmt: skip
MAYBE = {"power", "energy_mj", "gpu_memory_mb", "throughput_ips", "memory_mb"}


@st.composite
def reports(draw):
    """Any widths, λ, batches and kinds, with figures of any magnitude, unknown, or failed."""
    lambdas = draw(st.lists(st.floats(0, 1), min_size=1, max_size=12, unique=True))
    report = make_report(
        widths=draw(st.lists(st.floats(0.1, 1), min_size=1, max_size=3, unique=True)),
        lambdas=sorted(lambdas),
        batches=draw(st.sampled_from([(1,), (1, 16), (4, 1024)])),
        kinds=draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True)),
        pinned=draw(st.sampled_from([(), (0.3,), (0.125, 1.0)])),
        latency_ms=latency(draw(LARGE)),
        throughput_ips=draw(LARGE),
        memory_mb=draw(LARGE),
        gpu_memory_mb=draw(st.one_of(st.none(), LARGE)),
        energy_mj=draw(LARGE),
        power=dataclasses.replace(POWER, mean_w=draw(LARGE)),
        status=draw(st.sampled_from(["ok", "unstable"])),
        standard_accuracy=draw(SHARE),
        robust_accuracy={"worst": draw(SHARE)},
        pareto=draw(st.sampled_from([True, False, None])),
    )
    unknown = draw(st.sets(st.sampled_from(sorted(MAYBE))))
    report = change(report, lambda row: row.width < 0.5, **dict.fromkeys(unknown))
    struck = draw(st.sampled_from(report.rows))
    if draw(st.booleans()):
        here = struck.artifact, struck.batch
        report = fail(report, lambda row: (row.artifact, row.batch) == here, "it was lost")
    return report


def printed_columns(grid, most):
    gap = " " * grid.gap(most)
    widths = [max(map(len, column)) for column in zip(grid.headers, *grid.lines, strict=True)]
    return [
        len(gap.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
        for line in (grid.headers, *grid.lines)
    ]


@settings(max_examples=150, deadline=None)
@given(reports())
def test_no_line_is_over_100_columns(report):
    for grid in (cost_table(report), *accuracy_tables(report, 100)):
        assert max(printed_columns(grid, 100)) <= 100
        assert all(len(line) == len(grid.headers) for line in grid.lines)


@settings(max_examples=100, deadline=None)
@given(reports())
def test_every_row_of_the_report_is_in_the_tables(report):
    labels = {one.file: one for one in label_files(report)}
    assert len({(one.width, one.kind, one.lam) for one in labels.values()}) == len(labels)
    grid = cost_table(report)
    cells = [dict(zip(grid.headers, line, strict=True)) for line in grid.lines]
    told = {
        (c["Width"], c.get("Kind", "onnx fp32"), c["λ"], c["Batch"], c["Status"]) for c in cells
    }
    expected = set()
    for row in report.rows:
        one = labels[row.artifact]
        expected.add((one.width, one.kind, one.lam, str(row.batch), row.status))
    assert told == expected and len(cells) == len(expected)
    if any(row.standard_accuracy is not None or row.worst is not None for row in report.rows):
        tables = accuracy_tables(report, 100)
        told = {
            (line[0], name) for table in tables for line in table.lines
            for name, cell in zip(table.headers, line, strict=True) if "/" in cell
        }  # fmt: skip
        for row in report.rows:
            pinned = "" if labels[row.artifact].lam == "input" else " pinned"
            assert (labels[row.artifact].width + pinned, f"λ={row.lam:.4g}") in told


def by_name(grid, index):
    return dict(zip(grid.headers, grid.lines[index], strict=True))


def test_costs_are_one_line_per_file_and_batch():
    report = make_report(widths=(0.5,), lambdas=(0.0, 0.3), batches=(1, 16), pinned=(0.3,))
    grid = cost_table(report)
    assert grid.headers == (
        "Width", "λ", "Batch", "p50 ms", "p99 ms", "img/s", "MB", "W", "mJ/img", "Status",
    )  # fmt: skip
    assert [line[:3] for line in grid.lines] == [
        ("0.5", "input", "1"), ("0.5", "input", "16"),
        ("0.5", "0.3 pinned", "1"), ("0.5", "0.3 pinned", "16"),
    ]  # fmt: skip
    assert by_name(grid, 0) | {"p50 ms": "1.00", "W": "12.5", "mJ/img": "1.00"} == by_name(grid, 0)


def test_what_is_known_nowhere_has_no_column_and_what_failed_has_dashes():
    nothing = {"power": None, "energy_mj": None}
    report = change(make_report(), lambda row: True, **nothing)
    assert not {"W", "mJ/img", "GPU MB", "Kind"} & set(cost_table(report).headers)
    on_gpu = change(report, lambda row: row.batch == 1, gpu_memory_mb=12.0)
    grid = cost_table(on_gpu)
    assert [by_name(grid, i)["GPU MB"] for i in (0, 1)] == ["12.0", UNKNOWN]
    failed = cost_table(fail(make_report(), lambda row: row.batch == 16, "lost"))
    cells = by_name(failed, 1)
    assert cells["Status"] == "failed"
    assert {cells[name] for name in ("p50 ms", "p99 ms", "img/s", "MB", "W", "mJ/img")} == {UNKNOWN}
    assert by_name(failed, 0)["Status"] == "ok"


def test_a_column_tells_formats_and_precisions_unless_they_are_the_usual_ones():
    report = make_report(kinds=(("onnx", "fp16-emulated"), ("trt-rtx", "fp16"), ("trt", "int8")))
    for grid in (cost_table(report), *accuracy_tables(report, 100)):
        column = [line[grid.headers.index("Kind")] for line in grid.lines]
        assert list(dict.fromkeys(column)) == ["onnx fp16~", "rtx fp16", "trt int8"]


def test_files_that_are_alike_are_numbered():
    """Engines of one width and precision that were built in other ways."""
    rows = [row_of(0.5, lam, artifact=f) for f in ("a.engine", "b.engine") for lam in (0.0, 1.0)]
    report = dataclasses.replace(make_report(pinned=()), rows=tuple(rows), lambda_cost=())
    assert [one.kind for one in label_files(report)] == ["onnx fp32 (1)", "onnx fp32 (2)"]
    assert [line[1] for line in cost_table(report).lines] == ["onnx fp32 (1)", "onnx fp32 (2)"]
    (grid,) = accuracy_tables(report, 100)
    assert len(grid.lines) == 2


def test_accuracies_are_a_line_per_width_and_a_column_per_lambda():
    report = make_report(widths=(0.5,), lambdas=(0.0, 0.25), pinned=(0.3, 1.0), batches=(1, 16))
    report = change(report, lambda row: row.lam == 0.25, standard_accuracy=1.0)
    report = change(report, lambda row: row.lam == 1.0, robust_accuracy={"worst": None})
    (grid,) = accuracy_tables(report, 100)
    assert grid.headers == ("Width", "λ=0", "λ=0.25", "λ=0.3", "λ=1")
    knob, pinned = [[cell.split() for cell in line] for line in grid.lines]
    assert knob == [["0.5"], ["90.0", "/", "40.0"], ["100.0", "/", "40.0"], [], []]
    assert pinned == [["0.5", "pinned"], [], [], ["90.0", "/", "40.0"], ["90.0", "/", UNKNOWN]]


def test_the_front_is_that_of_the_smallest_batch():
    report = make_report(widths=(0.5, 1.0), lambdas=(0.0, 1.0), pinned=(), batches=(4, 16))
    report = change(report, lambda row: row.width == 0.5 and row.batch == 4, pareto=True)
    report = change(report, lambda row: row.width == 1.0 and row.batch == 16, pareto=True)
    (grid,) = accuracy_tables(report, 100)
    assert [[FRONT in cell for cell in line[1:]] for line in grid.lines] == [
        [True] * 2,
        [False] * 2,
    ]


def test_the_front_of_a_larger_batch_is_not_shown_for_a_file_without_the_smallest():
    report = make_report(widths=(0.5, 1.0), lambdas=(0.0,), pinned=(), batches=(4, 16), pareto=True)
    rows = tuple(row for row in report.rows if row.width == 0.5 or row.batch == 16)
    (grid,) = accuracy_tables(dataclasses.replace(report, rows=rows), 100)
    assert [FRONT in line[1] for line in grid.lines] == [True, False]


def test_many_lambdas_become_several_tables_and_none_is_lost():
    lambdas = [index / 20 for index in range(21)]
    report = make_report(lambdas=lambdas)
    tables = accuracy_tables(report, 100)
    assert len(tables) > 1
    names = [name for grid in tables for name in grid.headers[1:]]
    assert names == [f"λ={lam:.4g}" for lam in lambdas]
    assert len(accuracy_tables(make_report(lambdas=lambdas[:6]), 100)) == 1


def test_without_any_accuracy_there_is_no_such_table():
    unknown = {"standard_accuracy": None, "robust_accuracy": {"worst": None}}
    assert accuracy_tables(make_report(**unknown), 100) == ()


def test_the_tables_of_a_real_bench(benched):
    """Rows, pinned files, unknown λ = 0.5 and fronts as they come out of the bench."""
    report = benched.report
    grid = cost_table(report)
    assert len(grid.lines) == len({(row.artifact, row.batch) for row in report.rows})
    assert sum("0.3 pinned" in line for line in grid.lines) == 2
    (table,) = accuracy_tables(report, 100)
    front = sum(cell.endswith(FRONT) for line in table.lines for cell in line)
    assert front == sum(row.pareto is True and row.batch == 1 for row in report.rows) > 0
    column = [line[table.headers.index("λ=0.5")] for line in table.lines]
    # SA is known without a pack of this λ, RA is not.
    assert [UNKNOWN in cell for cell in column if cell] == [True, True]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, UNKNOWN), (0.0, "0"), (0.04123, "0.0412"), (0.5, "0.500"), (3.14159, "3.14"),
     (27.18, "27.2"), (271.8, "272"), (12345.6, "12,346"), (99_999.4, "99,999"),
     (123_456.0, "123k"), (1.234e6, "1.23M"), (5e9, "5.00G"), (1.4e-5, "1e-05"),
     (-3.25, "-3.25")],
)  # fmt: skip
def test_three_significant_figures(value, text):
    assert figures(value) == text


@given(st.floats(0, 1e15))
def test_figures_are_short_and_true_to_two_places(value):
    text = figures(value)
    assert len(text) <= 6
    number = float(text.replace(",", "").translate(str.maketrans("", "", "kMG")))
    scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1.0)
    if value >= 0.01 and "e" not in text:
        assert number * scale == pytest.approx(value, rel=0.01)
    assert (number == 0) == (value == 0)


def test_a_pinned_file_is_known_by_the_cost_of_lambda():
    cost = LambdaCost(
        width=1.0, batch=1, artifact=None, pinned_artifact="p.onnx", pinned_lambda=0.3,
        lambda_input_p50_ms=None, pinned_p50_ms=1.0, ratio=None, reason="no file with a λ input",
    )  # fmt: skip
    rows = (row_of(lam=0.3, artifact="p.onnx"),)
    report = dataclasses.replace(make_report(), rows=rows, lambda_cost=(cost,))
    assert [one.lam for one in label_files(report)] == ["0.3 pinned"]
    assert [one.lam for one in label_files(dataclasses.replace(report, lambda_cost=()))] == [
        "input"
    ]
