"""A comparison as one screen of text: what with, the table, what was left out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console

from oat_edge.cli.console import plain_table
from oat_edge.evaluation.parity import MAX_ABS_DIFF, MAX_HALF_DIFF, MIN_AGREEMENT

if TYPE_CHECKING:
    from oat_edge.evaluation.comparison import Comparison
    from oat_edge.evaluation.parity import Gate

HEADERS = ["file", "back end", "precision", "max\n|Δ|", "mean\n|Δ|", "same\nclass %", "gate", ""]
RESULT = {True: "ok", False: "FAILS", None: ""}


def print_comparison(found: Comparison, console: Console) -> None:
    """Print everything a person needs to judge the figures."""
    environment, reference = found.environment, found.reference
    model = environment.device.model or environment.device.machine
    libraries = ", ".join(f"{name} {v}" for name, v in environment.library_versions.items())
    console.print(f"{model}, {environment.device.cores} cores; {libraries}")
    console.print(f"reference: {reference.backend}, {reference.network}")
    if reference.reason is not None:
        console.print(f"not the trained network itself: {reference.reason}", style="yellow")
    for line in _what(found):
        console.print(line)
    console.print(_table(found))
    for line in _notes(found):
        console.print(line, style="dim")
    for reason in dict.fromkeys(one.reason for one in found.not_run):
        names = ", ".join(one.artifact for one in found.not_run if one.reason == reason)
        console.print(f"not run ({reason}): {names}", style="yellow")
    for row in found.rows:
        for text in row.remarks:
            console.print(f"{row.artifact} in {row.backend}: {text}", style="yellow")


def describe_failure(found: Comparison) -> str:
    """One line about the worst row that failed."""
    worst, *others = found.failed
    more = f" ({len(found.failed)} of {len(found.rows)} rows fail)" if others else ""
    if worst.max_abs_diff is None:
        how = (
            f"has logits that are not finite numbers, or the reference has: {worst.num_not_finite} "
            f"of {worst.num_pairs} (image, λ) pairs, as at λ={worst.worst_lambda:g}"
        )
    elif worst.failure is not None:
        how = worst.failure
    elif worst.gate.kind == "argmax_agreement":
        how = (
            f"has the reference's class on {_percent(worst.argmax_agreement)} % of "
            f"{worst.num_pairs} (image, λ) pairs, expected {100 * MIN_AGREEMENT:g} % or more"
        )
    else:
        how = (
            f"differs from the reference by {worst.max_abs_diff:.2g} at λ={worst.worst_lambda:g}, "
            f"allowed is {worst.gate.limit:g}"
        )
    where = f"{worst.artifact} in {worst.backend}"
    return f"{where} {how}{more}: do not deploy it; export again, and report it if it stays"


def _what(found: Comparison) -> list[str]:
    settings, rows = found.settings, found.rows
    num_lambdas = max(len(row.by_lambda) for row in rows)
    images = f"{settings['num_samples']} images at {num_lambdas} λ" if num_lambdas > 1 else ""
    if any(len(row.by_lambda) == 1 for row in rows):
        alone = f"{settings['num_samples_one_lambda']} images for files with one λ"
        images = f"{images}, {alone}" if images else alone
    sizes = sorted({size for row in rows for size in row.batch_sizes})
    off = sorted(set(settings["lambdas"]) - set(settings["lambda_knots"]))
    at = [lam for lam in settings["lambdas"] if lam not in off]
    lambdas = " and ".join(
        f"{name} {', '.join(f'{lam:g}' for lam in values)}"
        for name, values in (("knots", at), ("off knots", off))
        if values
    )
    return [
        f"{images} ({settings['images']})",
        f"λ: {lambdas}; batches of {', '.join(map(str, sizes))}, λ alone and mixed",
    ]


def _table(found: Comparison) -> object:
    table = plain_table(None, HEADERS, left=3)
    previous = found.rows[0].width
    for row in found.rows:
        if row.width != previous:
            table.add_row()
        previous = row.width
        table.add_row(
            row.artifact,
            row.backend.replace("onnxruntime", "ort"),
            row.precision,
            _small(row.max_abs_diff),
            _small(row.mean_abs_diff),
            _percent(row.argmax_agreement),
            _gate(row.gate),
            "itself" if row.is_reference and row.passed is None else RESULT[row.passed],
            style="red" if row.passed is False else None,
        )
    return table


def _notes(found: Comparison) -> list[str]:
    kinds = {(row.gate.kind, row.device == "cpu") for row in found.rows}
    gates = [
        (("max_abs_diff", True), f"fp32 on a CPU: Δ of logits at most {MAX_ABS_DIFF['cpu']:g}"),
        (("max_abs_diff", False), f"fp32 on a GPU: Δ of logits at most {MAX_ABS_DIFF['gpu']:g}"),
    ]
    lines = ["Δ: difference of a logit; ort: ONNX Runtime."]
    lines += [text for kind, text in gates if kind in kinds]
    halves = [row for row in found.rows if row.gate.kind == "argmax_agreement"]
    if halves:
        pairs = min(row.num_pairs for row in halves)
        allowed = math.floor((1 - MIN_AGREEMENT) * pairs + 1e-9)
        lines.append(
            f"fp16: same class on at least {100 * MIN_AGREEMENT:g} % of the (image, λ) pairs "
            f"(of {pairs}, {allowed} may differ), Δ at most {100 * MAX_HALF_DIFF:g} % of the "
            "largest logit"
        )
    if any(row.gate.kind == "none" for row in found.rows):
        lines.append("int8: no gate")
    if any(row.precision == "fp16-emulated" for row in found.rows):
        lines.append(
            "fp16-emulated: a CPU computes half precision in float32 between casts; what it "
            "shows of the file holds, its speed does not"
        )
    return lines


def _gate(gate: Gate) -> str:
    if gate.limit is None:
        return "none"
    return f"{gate.limit:.0e}" if gate.kind == "max_abs_diff" else f"{100 * gate.limit:g}"


def _small(value: float | None) -> str:
    return "NaN/inf" if value is None else f"{value:.1e}"


def _percent(share: float) -> str:
    """Rounded down: what is short of a limit does not look as if it met it."""
    return f"{math.floor(1e4 * share + 1e-6) / 100:.2f}"
