"""The rows of a report as strings for a terminal table of at most 100 columns."""

from __future__ import annotations

from oat_edge.bench.report import Report, Row

HEADERS = (
    "Width", "λ", "Batch", "p50 ms", "p99 ms", "img/s", "MB", "SA %", "RA %", "Front", "Status",
)  # fmt: skip
# Where files of several formats or precisions are compared.
KIND = "Kind"
UNKNOWN = "–"
EMULATED = "~"
USUAL = ("onnx", "fp32")
SHORT = {"trt-rtx": "rtx"}


def rows_for_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Headers, and one list of strings per row; "–" is what is not known.

    SA: standard accuracy. RA: worst-case robust accuracy. Front "●": Pareto-optimal in its batch.
    Kind: format and precision, where they are not the usual ones; "~": emulated in float32.
    """
    knob = {row.artifact for row in report.knob_rows}
    headers = list(HEADERS)
    rows = [_cells(row, row.artifact not in knob) for row in report.rows]
    if set(report.kinds) - {USUAL}:
        headers.insert(1, KIND)
        for cells, row in zip(rows, report.rows, strict=True):
            cells.insert(1, short_kind(row.kind))
    return headers, rows


def short_kind(kind: tuple[str, str]) -> str:
    """Format and precision in at most ten characters: "rtx fp16", "onnx fp16~"."""
    format, precision = kind
    return f"{SHORT.get(format, format)} {precision.replace('-emulated', EMULATED)}"


def _cells(row: Row, pinned: bool) -> list[str]:
    return [
        f"{row.width:g}",
        f"{row.lam:g} pinned" if pinned else f"{row.lam:g}",
        str(row.batch),
        figures(row.latency_ms.p50),
        figures(row.latency_ms.p99),
        figures(row.throughput_ips),
        figures(row.memory_mb),
        _percent(row.standard_accuracy),
        _percent(row.worst),
        {True: "●", False: "", None: UNKNOWN}[row.pareto],
        row.status,
    ]


def figures(value: float | None) -> str:
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
