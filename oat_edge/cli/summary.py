"""A bench report as one screen of text: where, the table, what λ costs, what to be wary of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich.console import Console

from oat_edge.bench.table import rows_for_table
from oat_edge.cli.console import plain_table

if TYPE_CHECKING:
    from oat_edge.bench.report import Report

# Of every row of this version; the report says it, the screen need not.
SILENT = "energy_mj"
# A figure, not the 95 of p95.
NUMBER = re.compile(r"(?<![A-Za-z\d.])\d+(\.\d+)?")


def print_report(report: Report, console: Console) -> None:
    """Print everything a person needs before using a figure."""
    environment = report.environment
    model = environment.device.model or environment.device.machine
    libraries = ", ".join(f"{name} {v}" for name, v in environment.library_versions.items())
    console.print(f"{model}, {environment.device.cores} cores; {libraries}", markup=False)
    console.print(_table(report))
    attacks = ", ".join(report.settings.get("attacks", {})) or "no attack"
    lines = [
        f"SA: standard accuracy. RA: robust accuracy, worst case over {attacks}, an upper bound.",
        "Latency is measured once per file and batch, over all λ in turn: λ share the figure.",
        "Front ●: in its batch no setting is as good in p50, SA and RA and better in one of them.",
    ]
    for line in lines:
        console.print(line, style="dim", markup=False)
    for line in [*_lambda_cost(report), _flatness(report)]:
        console.print(line, markup=False)
    for line in _warnings(report):
        console.print(f"warning: {line}", style="yellow", markup=False)


def _table(report: Report) -> object:
    headers, rows = rows_for_table(report)
    table = plain_table(None, headers)
    previous = rows[0][0] if rows else ""
    for row in rows:
        if row[0] != previous:
            table.add_row()
        previous = row[0]
        table.add_row(*row)
    return table


def _lambda_cost(report: Report) -> list[str]:
    """One line per width: "λ as an input costs, width 0.5: 1.04x at batch 1, …"."""
    lines: dict[float, list[str]] = {}
    for cost in report.lambda_cost:
        ratio = f"{cost.ratio:.2f}x" if cost.ratio is not None else f"unknown ({cost.reason})"
        pinned = f" (λ={cost.pinned_lambda:g} pinned)" if cost.pinned_lambda is not None else ""
        lines.setdefault(cost.width, []).append(f"{ratio} at batch {cost.batch}{pinned}")
    return [
        f"λ as an input costs, width {width:g}: {', '.join(parts)}"
        for width, parts in lines.items()
    ]


def _flatness(report: Report) -> str:
    known = [f for f in report.lambda_flatness if f.max_relative_spread is not None]
    if not known:
        return "λ and latency: not tested, too few samples"
    worst = max(known, key=lambda f: f.max_relative_spread or 0.0)
    return (
        f"λ and latency: medians of the λ differ by at most {worst.max_relative_spread:.1%} "
        f"(p = {worst.p_value:.2f}; {worst.artifact}, batch {worst.batch})"
    )


def _warnings(report: Report) -> list[str]:
    """Warnings that differ only in their figures are one line, with the largest of them."""
    groups: dict[str, list[str]] = {}
    for row in report.rows:
        for text in row.warnings:
            if not text.startswith(SILENT):
                groups.setdefault(NUMBER.sub("#", text), []).append(text)
    lines = []
    for texts in groups.values():
        worst = max(texts, key=_first_number)
        lines.append(f"{worst} (the worst of {len(texts)} rows)" if len(texts) > 1 else worst)
    return lines


def _first_number(text: str) -> float:
    match = NUMBER.search(text)
    return float(match[0]) if match else 0.0
