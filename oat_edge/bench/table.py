"""A report as tables of strings for a terminal: what files cost, and what λ gives in each.

All figures but the accuracies are the same for every λ of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from oat_edge.bench.report import Report, Row

KIND = "Kind"
UNKNOWN = "–"
EMULATED = "~"
FRONT = "●"
USUAL = ("onnx", "fp32")
SHORT = {"trt-rtx": "rtx"}
# Between columns, if there is room; else one.
GAP = 2
# The columns that are there only where something is known.
OPTIONAL: tuple[tuple[str, Callable[[Row], float | None]], ...] = (
    ("GPU MB", lambda row: row.gpu_memory_mb),
    ("W", lambda row: row.power.mean_w if row.power else None),
    ("mJ/img", lambda row: row.energy_mj),
)


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: headers, lines of as many strings, and how many columns are aligned left."""

    headers: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    left: int
    groups: tuple[int, ...] = ()
    """Lines that begin another width."""

    def columns(self, gap: int = GAP) -> int:
        """How wide it is in a terminal."""
        widths = [max(map(len, column)) for column in zip(self.headers, *self.lines, strict=True)]
        return sum(widths) + gap * (len(widths) - 1)

    def gap(self, most: int) -> int:
        """Spaces between columns, so that it fits into `most` as far as it can."""
        return GAP if self.columns() <= most else 1


@dataclass(frozen=True, slots=True)
class FileLabel:
    """What tells a file from the others of its report."""

    file: str
    width: str
    kind: str
    """Format and precision, and "(1)", "(2)" … where files are alike in all of this."""
    lam: str
    """ "input", or the λ that is pinned."""


def label_files(report: Report) -> tuple[FileLabel, ...]:
    """One per file, in the order of the rows."""
    knob = {row.artifact for row in report.knob_rows}
    first = {row.artifact: row for row in reversed(report.rows)}
    files = dict.fromkeys(row.artifact for row in report.rows)
    labels = [
        FileLabel(
            file,
            f"{first[file].width:.4g}",
            short_kind(first[file].kind),
            "input" if file in knob else f"{first[file].lam:.4g} pinned",
        )
        for file in files
    ]
    alike: dict[tuple[str, str, str], list[str]] = {}
    for one in labels:
        alike.setdefault((one.width, one.kind, one.lam), []).append(one.file)
    told = []
    for one in labels:
        same = alike[one.width, one.kind, one.lam]
        number = f" ({same.index(one.file) + 1})" if len(same) > 1 else ""
        told.append(FileLabel(one.file, one.width, one.kind + number, one.lam))
    return tuple(told)


def cost_table(report: Report) -> Grid:
    """One line per (file, batch): latency, throughput, memory; power and energy if known.

    Kind: format and precision, where they are not the usual ones; "~": emulated in float32.
    """
    labels = {label.file: label for label in label_files(report)}
    kinds = any(label.kind != short_kind(USUAL) for label in labels.values())
    optional = [one for one in OPTIONAL if any(one[1](row) is not None for row in report.rows)]
    headers = ["Width", *([KIND] if kinds else []), "λ", "Batch", "p50 ms", "p99 ms", "img/s", "MB"]
    lines: list[tuple[str, ...]] = []
    groups, width = [], None
    for row in {(row.artifact, row.batch): row for row in report.rows}.values():
        label, latency = labels[row.artifact], row.latency_ms
        if width not in (None, label.width):
            groups.append(len(lines))
        width = label.width
        lines.append(
            (
                label.width,
                *([label.kind] if kinds else []),
                label.lam,
                str(row.batch),
                figures(latency.p50 if latency else None),
                figures(latency.p99 if latency else None),
                figures(row.throughput_ips),
                figures(row.memory_mb),
                *(figures(value(row)) for _, value in optional),
                row.status,
            )
        )
    names = (*headers, *(name for name, _ in optional), "Status")
    return Grid(names, tuple(lines), left=2 if kinds else 1, groups=tuple(groups))


def accuracy_tables(report: Report, most: int) -> tuple[Grid, ...]:
    """One line per file, or per width for pinned ones; a column "SA / RA" in % per λ.

    "●": on the front at the smallest batch. Several tables if the λ do not fit into `most`
    columns; none without any accuracy.
    """
    if all(row.standard_accuracy is None and row.worst is None for row in report.rows):
        return ()
    lambdas = sorted({row.lam for row in report.rows})
    lines = _accuracy_lines(report)
    for join in (" / ", "/"):
        one = _accuracy_grid(lines, lambdas, join)
        if one.columns() <= most:
            return (one,)
    grids: list[Grid] = []
    here: list[float] = []
    for lam in lambdas:
        if here and _accuracy_grid(lines, [*here, lam], "/").columns() > most:
            grids.append(_accuracy_grid(lines, here, "/"))
            here = []
        here.append(lam)
    return (*grids, _accuracy_grid(lines, here, "/"))


_Cells = dict[float, tuple[str, str, str]]


def _accuracy_lines(report: Report) -> list[tuple[str, str, _Cells]]:
    """(width, kind, λ -> SA, RA, front). Pinned files that are alike share a line."""
    smallest = min((row.batch for row in report.rows), default=1)
    by_file: dict[str, _Cells] = {}
    # Accuracies do not depend on the batch, and the smallest is the last that is looked at.
    for row in sorted(report.rows, key=lambda row: -row.batch):
        front = FRONT if row.pareto and row.batch == smallest else " "
        cell = _percent(row.standard_accuracy), _percent(row.worst), front
        by_file.setdefault(row.artifact, {})[row.lam] = cell
    lines: dict[tuple[str, str, str], _Cells] = {}
    for label in label_files(report):
        pinned = "" if label.lam == "input" else " pinned"
        cells = lines.setdefault((label.width, label.kind, pinned), {})
        cells |= by_file[label.file]
    return [(width + pinned, kind, cells) for (width, kind, pinned), cells in lines.items()]


def _accuracy_grid(
    lines: Sequence[tuple[str, str, _Cells]], lambdas: Sequence[float], join: str
) -> Grid:
    kinds = any(kind != short_kind(USUAL) for _, kind, _ in lines)
    known = [cell for _, _, cells in lines for cell in cells.values()]
    wide = [max((len(cell[part]) for cell in known), default=0) for part in (0, 1)]
    rows = []
    for width, kind, cells in lines:
        if not any(lam in cells for lam in lambdas):
            continue
        texts = []
        for lam in lambdas:
            sa, ra, front = cells.get(lam, ("", "", ""))
            texts.append(f"{sa:>{wide[0]}}{join}{ra:>{wide[1]}}{front}" if lam in cells else "")
        rows.append((width, *([kind] if kinds else []), *texts))
    headers = ("Width", *([KIND] if kinds else []), *(f"λ={lam:.4g}" for lam in lambdas))
    return Grid(headers, tuple(rows), left=len(headers))


def short_kind(kind: tuple[str, str]) -> str:
    """Format and precision in at most ten characters: "rtx fp16", "onnx fp16~"."""
    format, precision = kind
    return f"{SHORT.get(format, format)} {precision.replace('-emulated', EMULATED)}"


def figures(value: float | None) -> str:
    """Three significant figures in at most six characters: 0.0412, 3.14, 271, 12,345, 123k.

    Whole numbers below 100,000 keep their digits.
    """
    if value is None:
        return UNKNOWN
    size = abs(value)
    if size == 0:
        return "0"
    if not 5e-5 <= size < 1e12:
        return f"{value:.0e}"
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= max(scale, 99_999.5):
            return f"{_three(value / scale)}{unit}"
    return _three(value)


def _three(value: float) -> str:
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    decimals = 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{value:.{decimals}f}"


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f}"
