"""The rows of a report as strings for a terminal table of at most 100 columns."""

from __future__ import annotations

from oat_edge.bench.report import Report, Row

HEADERS = (
    "Width", "λ", "Batch", "p50 ms", "p99 ms", "img/s", "MB", "SA %", "RA %", "Front", "Status",
)  # fmt: skip
UNKNOWN = "–"


def rows_for_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Headers, and one list of strings per row; "–" is what is not known.

    SA: standard accuracy. RA: worst-case robust accuracy. Front "●": Pareto-optimal in its batch.
    """
    knob = {row.artifact for row in report.knob_rows}
    return list(HEADERS), [_cells(row, row.artifact not in knob) for row in report.rows]


def _cells(row: Row, pinned: bool) -> list[str]:
    return [
        f"{row.width:g}",
        f"{row.lam:g} pinned" if pinned else f"{row.lam:g}",
        str(row.batch),
        _figures(row.latency_ms.p50),
        _figures(row.latency_ms.p99),
        _figures(row.throughput_ips),
        _figures(row.memory_mb),
        _percent(row.standard_accuracy),
        _percent(row.worst),
        {True: "●", False: "", None: UNKNOWN}[row.pareto],
        row.status,
    ]


def _figures(value: float | None) -> str:
    """Three significant figures without exponent: 0.0412, 3.14, 271, 12,345."""
    if value is None:
        return UNKNOWN
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    decimals = 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{value:.{decimals}f}"


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f}"
