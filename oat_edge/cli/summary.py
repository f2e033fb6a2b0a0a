"""A bench report as one screen of text: where, what it costs, what λ gives, what is amiss."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from oat_edge.bench.diagnosis import ENERGY, diagnose, listed, undiagnosed
from oat_edge.bench.table import (
    EMULATED,
    FRONT,
    Grid,
    accuracy_tables,
    cost_table,
    figures,
    label_files,
    short_kind,
)
from oat_edge.cli.console import plain_table
from oat_edge.cli.layers import print_layers
from oat_edge.cli.precision_summary import WARNING, largest_drops, masking_lines
from oat_edge.evaluation.accuracy import wilson_interval
from oat_edge.evaluation.pack_set import TRANSFER, WORST
from oat_edge.evaluation.transfer import largest_gain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from oat_edge.bench.environment import Environment
    from oat_edge.bench.report import LambdaCost, Report, Row
    from oat_edge.evaluation.transfer import TransferGrid

# No table is wider, however wide the terminal is.
MOST = 100
STYLES = {"failed": "red", "unstable": "yellow"}
# What the monitor reads to see throttling, of `MonitorFacts.reads`.
THROTTLING = re.compile(r"oc\d+_event_cnt|throttle_count|ClocksEventReasons")


def print_report(report: Report, console: Console) -> None:
    """Print everything a person needs before using a figure."""
    most = min(MOST, console.width)
    for line in _where(report):
        console.print(line, markup=False)
    console.print(_table(cost_table(report), most))
    for index, grid in enumerate(accuracy_tables(report, most)):
        console.print("" if index else "\nSA / RA in %", style="bold", markup=False)
        console.print(_table(grid, most))
    for line in _legend(report):
        console.print(line, style="dim", markup=False)
    found = [*_lambda_cost(report), _flatness(report), *_on_device(report), *_transfer(report)]
    found += largest_drops(report.precisions)
    # What is masked is a diagnosis.
    found += [text for text in masking_lines(report.precisions) if not text.startswith(WARNING)]
    for line in found:
        console.print(line, markup=False)
    print_layers(report, console)
    _print_troubles(report, console)


def _print_troubles(report: Report, console: Console) -> None:
    diagnoses = diagnose(report)
    for one in diagnoses:
        console.print(str(one), style=STYLES.get(one.kind, "yellow"), markup=False)
    if not diagnoses:
        console.print("diagnosis: no trouble seen with latency", style="green", markup=False)
    for text in (*report.warnings, *undiagnosed(report)):
        console.print(f"warning: {text}", style="yellow", markup=False)


def _table(grid: Grid, most: int) -> Table:
    table = plain_table(None, list(grid.headers), left=grid.left)
    table.padding = (0, grid.gap(most), 0, 0)
    # One line or two of each width need no space between them.
    apart = len(grid.lines) > 2 * (len(grid.groups) + 1)
    for index, line in enumerate(grid.lines):
        if apart and index in grid.groups:
            table.add_row()
        *cells, last = line
        table.add_row(*cells, Text(last, style=STYLES.get(last, "")))
    return table


def _where(report: Report) -> list[str]:
    """Processor and libraries; a Jetson's state; what was set for the bench; power."""
    environment = report.environment
    lines = [_processor(environment)]
    jetson = environment.jetson
    if jetson is not None:
        mode, locked = jetson.power_mode, jetson.clocks_locked
        name = "unknown" if mode is None else mode.name or str(mode.id)
        clocks = {True: "locked", False: "not locked", None: "perhaps locked"}[locked]
        lines.append(
            f"{jetson.model or 'Jetson'}, JetPack {jetson.jetpack or 'unknown'}, "
            f"power mode {name}, clocks {clocks}"
        )
    held = (report.settings.get("held") or {}).get("set", {})
    if held:
        lines.append(f"set for this bench: {', '.join(held.values())}")
    if environment.recorded_from is not None:
        tree = environment.recorded_from
        lines.append(f"described is a recorded tree, not this machine: {tree}")
    return [*lines, *_power(report)]


def _processor(environment: Environment) -> str:
    device = environment.device
    text = f"{device.model or device.machine}, "
    if device.kind != "cpu":
        text += f"sm {device.compute_capability}, CUDA {device.cuda}"
        text += f", driver {environment.driver}" if environment.driver else ""
        text += f"; {device.host or device.machine}, "
    libraries = ", ".join(f"{name} {v}" for name, v in environment.library_versions.items())
    return f"{text}{device.cores} cores; {libraries}"


def _power(report: Report) -> list[str]:
    """Who tells the power, of what, and what it is at rest."""
    powers = [row.power for row in report.rows if row.power is not None]
    return [
        f"power: {source}, {scope}; {f'{idle:.3g} W' if idle is not None else 'unknown'} at rest"
        for source, scope, idle in dict.fromkeys((p.source, p.scope, p.idle_w) for p in powers)
    ]


def _legend(report: Report) -> list[str]:
    lines = [
        f"SA: standard accuracy. RA: robust accuracy, {_attacks(report)}.",
        *_reach(report),
        f"{FRONT}: at batch {min((row.batch for row in report.rows), default=1)} no other is as "
        "good in p50, SA and RA and better in one (pinned among themselves).",
        "λ share a file's latency, taken over all λ in turn.",
    ]
    if any(row.energy_mj is not None for row in report.rows):
        lines[-1] += " W, mJ: with what is drawn at rest."
    if any(row.device_ms is not None for row in report.knob_rows):
        lines.append("on the device: ms of copying in + computing + copying out (p50).")
    if any(EMULATED in short_kind(kind) for kind in report.kinds):
        lines.append(f"{EMULATED}: computed in float32 between casts, not in what the file holds.")
    lines += [
        f"{one.kind}, width {one.width}, λ {one.lam}: {one.file}"
        for one in label_files(report)
        if one.kind.endswith(")")
    ]
    return [*lines, *_unknown(report)]


def _unknown(report: Report) -> list[str]:
    """What this machine does not tell, so that "no trouble seen" is not taken for more."""
    rows = [row for row in report.rows if row.status != "failed"]
    missing = []
    if rows and all(row.energy_mj is None for row in rows):
        told = (text for row in rows for text in row.warnings if text.startswith(ENERGY))
        reason = next(told, "").removeprefix(ENERGY)
        missing.append(f"power and energy ({reason})" if reason else "power and energy")
    if rows and all(row.state is None or row.state.clock_mhz is None for row in rows):
        missing.append("clocks while it measured")
    if report.monitor is None or not any(map(THROTTLING.search, report.monitor.reads)):
        missing.append("throttling")
    return [f"Not known: {', '.join(missing)}."] if missing else []


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


def _lambda_cost(report: Report) -> list[str]:
    """One line per width (and kind): "λ as an input costs, width 0.5: 1.04x at batch 1, …"."""
    groups: dict[tuple[str, str | None, str | None], list[LambdaCost]] = {}
    for cost in report.lambda_cost:
        name = f"width {cost.width:g}"
        name += f" {cost.format} {cost.precision}" if len(report.kinds) > 1 else ""
        groups.setdefault((name, cost.pinned_artifact, cost.reason), []).append(cost)
    lines: dict[str, list[str]] = {}
    for (name, _, reason), costs in groups.items():
        if reason is None:
            ratios = [f"{cost.ratio:.2f}x at batch {cost.batch}" for cost in costs]
            text = f"{', '.join(ratios)} (λ={costs[0].pinned_lambda:g} pinned)"
        else:
            text = f"unknown at batch {listed(cost.batch for cost in costs)} ({reason})"
        lines.setdefault(name, []).append(text)
    return [f"λ as an input costs, {name}: {'; '.join(parts)}" for name, parts in lines.items()]


def _on_device(report: Report) -> list[str]:
    """Where the time goes, a line per file: rows that differ in λ share it."""
    lines: dict[str, dict[int, str]] = {}
    for row in report.knob_rows:
        if row.device_ms is not None:
            parts = row.device_ms.h2d, row.device_ms.compute, row.device_ms.d2h
            texts = lines.setdefault(row.artifact, {})
            batch = str(row.batch) if set(texts) - {row.batch} else f"batch {row.batch}"
            texts[row.batch] = f"{' + '.join(figures(part.p50) for part in parts)} ({batch})"
    return [f"on the device, {file}: {', '.join(texts.values())}" for file, texts in lines.items()]


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
    most = max(known, default=0.0)
    return [line + (f"; those of all together by up to {100 * most:.1f}" if most > 0 else "")]


def _lowered_by_transfer(row: Row) -> float | None:
    """RA under the one attack made on this row, less the worst case.

    None for several attacks: they lower the worst case together, without any transfer.
    """
    own = [share for name, share in row.robust_accuracy.items() if name not in (TRANSFER, WORST)]
    if len(own) != 1 or own[0] is None or row.worst is None:
        return None
    return own[0] - row.worst
