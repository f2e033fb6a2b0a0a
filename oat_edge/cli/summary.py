"""A bench report as one screen of text: where, the table, what λ costs, what to be wary of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich.console import Console

from oat_edge.bench.table import EMULATED, KIND, figures, rows_for_table, short_kind
from oat_edge.cli.console import plain_table
from oat_edge.evaluation.accuracy import wilson_interval
from oat_edge.evaluation.pack_set import TRANSFER, WORST
from oat_edge.evaluation.transfer import largest_gain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oat_edge.bench.environment import Environment
    from oat_edge.bench.profile import ArtifactProfile
    from oat_edge.bench.report import Report, Row
    from oat_edge.evaluation.transfer import TransferGrid

# Of every row of this version; the report says it, the screen need not.
SILENT = "energy_mj"
SLOWEST = 10
# Columns of a table that fits into 100.
LONGEST_NAME, LONGEST_KIND = 56, 20
# A figure, not the 95 of p95.
NUMBER = re.compile(r"(?<![A-Za-z\d.])\d+(\.\d+)?")


def print_report(report: Report, console: Console) -> None:
    """Print everything a person needs before using a figure."""
    console.print(_where(report.environment), markup=False)
    console.print(_table(report))
    lines = [
        f"SA: standard accuracy. RA: robust accuracy, {_attacks(report)}.",
        "Latency is measured once per file and batch, over all λ in turn: λ share the figure.",
        "Front ●: in its batch no setting is as good in p50, SA and RA and better in one of them.",
    ]
    lines += _reach(report)
    if any(EMULATED in short_kind(kind) for kind in report.kinds):
        lines.append(f"{EMULATED}: computed in float32 between casts, not in what the file holds.")
    for line in lines:
        console.print(line, style="dim", markup=False)
    found = [*_lambda_cost(report), _flatness(report), *_on_device(report), *_transfer(report)]
    for line in found:
        console.print(line, markup=False)
    for profile in _largest(report.profile):
        console.print()
        console.print(_layers_title(profile, report), markup=False)
        console.print(_layers(profile))
    for text in report.warnings:
        console.print(f"warning: {text}", style="yellow", markup=False)
    for line in _warnings(report):
        console.print(f"warning: {line}", style="yellow", markup=False)


def _where(environment: Environment) -> str:
    """Processor and libraries."""
    device = environment.device
    text = f"{device.model or device.machine}, "
    if device.kind != "cpu":
        text += f"sm {device.compute_capability}, CUDA {device.cuda}"
        text += f", driver {environment.driver}" if environment.driver else ""
        text += f"; {device.host or device.machine}, "
    libraries = ", ".join(f"{name} {v}" for name, v in environment.library_versions.items())
    return f"{text}{device.cores} cores; {libraries}"


def _reach(report: Report) -> list[str]:
    """How far SA and RA may be off, at most; plots and `eval` give each its own interval."""
    sizes = [row.num_samples for row in report.rows if row.num_samples]
    if not sizes:
        return []
    low, high = wilson_interval(min(sizes) / 2, min(sizes))
    return [
        f"SA and RA are of {min(sizes)} images: their 95 % intervals reach "
        f"±{50 * float(high - low):.0f} points where they are widest."
    ]


def _attacks(report: Report) -> str:
    """What stands behind RA: "worst case over pgd20, square (1000 queries) and transfer, …"."""
    attacks = report.settings.get("attacks", {})
    names = [
        f"{name} ({settings['queries']} queries)" if "queries" in settings else name
        for name, settings in attacks.items()
    ]
    names += [TRANSFER] if any(TRANSFER in row.robust_accuracy for row in report.rows) else []
    *others, last = names or ["no attack"]
    over = f"{', '.join(others)} and {last}" if others else last
    return f"worst case over {over}, an upper bound"


def _table(report: Report) -> object:
    headers, rows = rows_for_table(report)
    table = plain_table(None, headers, left=1 + headers.count(KIND))
    previous = rows[0][0] if rows else ""
    for row in rows:
        if row[0] != previous:
            table.add_row()
        previous = row[0]
        table.add_row(*row)
    return table


def _lambda_cost(report: Report) -> list[str]:
    """One line per width (and kind): "λ as an input costs, width 0.5: 1.04x at batch 1, …"."""
    lines: dict[str, list[str]] = {}
    for cost in report.lambda_cost:
        ratio = f"{cost.ratio:.2f}x" if cost.ratio is not None else f"unknown ({cost.reason})"
        pinned = f" (λ={cost.pinned_lambda:g} pinned)" if cost.pinned_lambda is not None else ""
        name = f"width {cost.width:g}"
        name += f" {cost.format} {cost.precision}" if len(report.kinds) > 1 else ""
        lines.setdefault(name, []).append(f"{ratio} at batch {cost.batch}{pinned}")
    return [f"λ as an input costs, {name}: {', '.join(parts)}" for name, parts in lines.items()]


def _on_device(report: Report) -> list[str]:
    """Where the time goes, once per file and batch: rows that differ in λ share it."""
    lines = {}
    for row in report.knob_rows:
        if row.device_ms is not None:
            parts = row.device_ms.h2d, row.device_ms.compute, row.device_ms.d2h
            h2d, compute, d2h = (figures(part.p50) for part in parts)
            lines[row.artifact, row.batch] = (
                f"On the device, {row.artifact}, batch {row.batch} (p50): {h2d} ms in, "
                f"{compute} ms computing, {d2h} ms out"
            )
    return list(lines.values())


def _largest(profiles: Sequence[ArtifactProfile]) -> list[ArtifactProfile]:
    """Of each artifact the one of the largest batch."""
    return list({one.artifact: one for one in sorted(profiles, key=lambda p: p.batch)}.values())


def _layers_title(profile: ArtifactProfile, report: Report) -> str:
    """What the table below is of. The layers of a profile add up to more than the latency."""
    text = (
        f"{profile.artifact}, batch {profile.batch}: the slowest of {len(profile.layers)} layers; "
        f"profiled, which slows it: {figures(profile.total_ms)} ms in all"
    )
    here = (profile.artifact, profile.batch)
    found = {row.latency_ms.p50 for row in report.rows if (row.artifact, row.batch) == here}
    return text + "".join(f"; latency p50 {figures(p50)} ms" for p50 in found)


def _layers(profile: ArtifactProfile) -> object:
    """The slowest layers of one artifact."""
    slowest = sorted(profile.layers, key=lambda layer: layer.ms, reverse=True)[:SLOWEST]
    table = plain_table(None, ["Layer", "Kind", "ms", "Share %"], left=2)
    for layer in slowest:
        table.add_row(
            cut(layer.name, LONGEST_NAME),
            cut(layer.kind, LONGEST_KIND),
            figures(layer.ms),
            f"{100 * layer.share:.1f}",
        )
    return table


def cut(text: str, most: int) -> str:
    """`text` in at most `most` characters: names of layers differ at both ends."""
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"


def _flatness(report: Report) -> str:
    known = [f for f in report.lambda_flatness if f.max_relative_spread is not None]
    if not known:
        return "λ and latency: not tested, too few samples"
    worst = max(known, key=lambda f: f.max_relative_spread or 0.0)
    return (
        f"λ and latency: medians of the λ differ by at most {worst.max_relative_spread:.1%} "
        f"(p = {worst.p_value:.2f}; {worst.artifact}, batch {worst.batch})"
    )


def transfer_line(grids: Sequence[TransferGrid]) -> str | None:
    """What an attacker gains who crafts at another operating point; None without a grid."""
    gain = largest_gain(grids)
    if gain is None:
        return None
    one, grid, target, source = gain
    if one > 0:
        text = f"by at most {100 * one:.1f} points ({target} ← {source}, {grid.attack})"
    else:
        text = "nowhere"
    return f"Transfer: images crafted at one other λ or width lower an attack's RA {text}"


def _transfer(report: Report) -> list[str]:
    line = transfer_line(report.transfer)
    if line is None:
        return []
    lowered = [_lowered_by_transfer(row) for row in report.transfer_rows]
    known = [share for share in lowered if share is not None]
    all_of_them = f"; those of all together by up to {100 * max(known):.1f}" if known else ""
    return [line + all_of_them]


def _lowered_by_transfer(row: Row) -> float | None:
    """RA under the one attack made on this row, less the worst case.

    None for several attacks: they lower the worst case together, without any transfer.
    """
    own = [share for name, share in row.robust_accuracy.items() if name not in (TRANSFER, WORST)]
    if len(own) != 1 or own[0] is None or row.worst is None:
        return None
    return own[0] - row.worst


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
