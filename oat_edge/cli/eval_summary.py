"""An evaluation as one screen of text: how far to trust it, the table, the checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from oat_edge.bench.table import short_kind
from oat_edge.cli.console import plain_table
from oat_edge.cli.precision_summary import WARNING, largest_drops, masking_lines, precision_table
from oat_edge.evaluation.checks import TOO_WEAK
from oat_edge.evaluation.plots import TITLES

if TYPE_CHECKING:
    from oat_edge.evaluation.report import EvalReport, EvalRow


def print_evaluation(report: EvalReport, console: Console) -> None:
    """Print everything a person needs before using a figure."""
    settings, environment = report.settings, report.environment
    model = environment.device.model or environment.device.machine
    libraries = ", ".join(f"{name} {v}" for name, v in environment.library_versions.items())
    console.print(f"{model}, {environment.device.cores} cores; {libraries}")
    radius = f"{settings['eps'] * 255:g}/255"
    console.print(f"{settings['num_samples']} images ({settings['images']}), ε {radius}")
    for pinned in (False, True):
        rows = [row for row in report.rows if row.pinned == pinned]
        if rows:
            console.print(_table(rows, "pinned\nλ" if pinned else "λ", several=_several(report)))
    if report.precisions:
        console.print(precision_table(report.precisions))
    for text in (*largest_drops(report.precisions), *masking_lines(report.precisions)):
        style = "yellow" if text.startswith(WARNING) else None
        console.print(text, style=style, markup=False)
    lines = [
        f"{settings['mode']}. Accuracies in %, in brackets 95 % intervals (Wilson).",
        "worst: right clean and under all of the table, image by image; an upper bound.",
        *_transfer(report),
        *_square(report),
        *_time(report),
    ]
    for line in lines:
        console.print(line, style="dim")
    _print_checks(report, console)
    for row in report.rows:
        for text in row.warnings:
            console.print(f"warning: {_name(row, report)}: {text}", style="yellow")
    for text in report.warnings:
        console.print(f"warning: {text}", style="yellow")


def _several(report: EvalReport) -> bool:
    """Whether files of one width differ in format or precision."""
    return len({(row.format, row.precision) for row in report.rows}) > 1


def _table(rows: list[EvalRow], lam: str, *, several: bool) -> object:
    attacks = [name for name in TITLES if any(name in row.robust_accuracy for row in rows)]
    names = [TITLES[name].replace(" on ", "\non ") for name in attacks]
    kind = ["kind"] if several else []
    table = plain_table(None, ["width", *kind, lam, "SA", *names, "worst", "checks"])
    previous = None
    for row in rows:
        group = row.artifact if several and not row.pinned else row.width
        if previous not in (None, group):
            table.add_row()
        previous = group
        robust, spans = row.robust_accuracy, row.robust_accuracy_interval
        table.add_row(
            f"{row.width:g}",
            *([short_kind((row.format, row.precision))] if several else []),
            f"{row.lam:.4g}",
            _with_interval(row.standard_accuracy, row.standard_accuracy_interval),
            *[f"{100 * robust[name]:.1f}" if name in robust else "–" for name in attacks],
            _with_interval(robust["worst"], spans["worst"]),
            row.status,
        )
    return table


def _name(row: EvalRow, report: EvalReport) -> str:
    return f"{row.point} ({row.artifact})" if row.pinned or _several(report) else str(row.point)


def _with_interval(share: float, span: tuple[float, ...]) -> str:
    return f"{100 * share:.1f} ({100 * span[0]:.0f}–{100 * span[1]:.0f})"


def _transfer(report: EvalReport) -> list[str]:
    """What images crafted elsewhere add to the attacks on the point itself."""
    gains = [
        (row.worst_without_transfer - row.robust_accuracy["worst"], row)
        for row in report.rows
        if "transfer" in row.robust_accuracy
    ]
    if not gains:
        return ["Transfer: nothing was replayed from elsewhere."]
    gain, row = max(gains, key=lambda item: item[0])
    what = f"by at most {100 * gain:.1f} points ({_name(row, report)})" if gain > 0 else "nowhere"
    return [f"Transfer: images crafted at all other λ and widths lower the worst case {what}."]


def _square(report: EvalReport) -> list[str]:
    square = report.settings.get("attacks", {}).get("square")
    return [f"Square: {square['queries']} queries per image."] if square else []


def _time(report: EvalReport) -> list[str]:
    """Where the time went, by part."""
    totals: dict[str, float] = {}
    for row in report.rows:
        for part, seconds in row.seconds.items():
            totals[part] = totals.get(part, 0.0) + seconds
    total = sum(totals.values())
    if total <= 0:
        return []
    parts = sorted(totals.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{part} {100 * seconds / total:.0f} %" for part, seconds in parts)
    before = report.settings.get("cells", {}).get("done_before", 0)
    earlier = f" {before} parts were done before." if before else ""
    return [f"Time of all parts: {total:.0f} s; {shares}.{earlier}"]


def _print_checks(report: EvalReport, console: Console) -> None:
    checks = [(row, check) for row in report.rows for check in row.checks]
    made = {check.name for _, check in checks if check.flagged is not None}
    flagged = [(row, check) for row, check in checks if check.flagged]
    if made and not flagged:
        console.print(f"Masked gradients: no sign of them ({', '.join(sorted(made))}).")
    for row, check in flagged:
        text = f"warning: {_name(row, report)}: masked gradients? {check.name}: {check.evidence}"
        console.print(text, style="yellow")
    if flagged:
        console.print("warning: do not trust the RA of suspect rows", style="yellow")
    reasons: dict[str, list[str]] = {}
    for row, check in checks:
        if check.flagged is None and TOO_WEAK in check.evidence:
            console.print(f"warning: {_name(row, report)}: {check.evidence}", style="yellow")
        elif check.flagged is None and check.name not in reasons.setdefault(check.evidence, []):
            reasons[check.evidence].append(check.name)
    for reason, names in reasons.items():
        console.print(f"Not checked ({', '.join(names)}): {reason}", style="dim")
