"""A bench on other machines: a bar for each, their reports, and one comparison."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from oat_edge.bench.report import Report, write_csv
from oat_edge.bench.request import BenchRequest
from oat_edge.bench.table import figures
from oat_edge.bundle import Bundle
from oat_edge.cli.bench_run import Outputs, check_rows, draw
from oat_edge.cli.console import bar, plain_table
from oat_edge.cli.summary import print_report
from oat_edge.remote.fleet import FleetResult, TargetResult, bench_on
from oat_edge.remote.targets import Target


def bench_remotely(
    request: BenchRequest,
    bundle: Bundle,
    targets: Sequence[Target],
    outputs: Outputs,
    console: Console,
    *,
    bootstrap: bool,
) -> None:
    """Measure there, print, and write; then raise what failed."""
    outputs.check(bundle)
    try:
        fleet = _measure(request, bundle, targets, console, bootstrap=bootstrap)
    except KeyboardInterrupt:
        console.print("what was measured is kept there: the same command with --resume goes on")
        raise
    reports = [(one.target.name, one.report) for one in fleet.results if one.report is not None]
    for name, report in reports:
        console.print(f"\n{name}", style="bold", markup=False)
        print_report(report, console)
        console.print(f"report: {bundle.path / f'report-{name}.json'}", markup=False)
    if len(targets) > 1:
        console.print()
        console.print(_comparison(fleet.results))
        saved = fleet.save(bundle.path)
        if saved is not None:
            console.print(f"all reports: {saved}", markup=False)
    _write(fleet, reports, bundle, outputs)
    if outputs.plot is not None:
        for name, report in reports:
            plot = outputs.plot
            several = len(reports) > 1
            draw(report, plot.with_stem(f"{plot.stem}-{name}") if several else plot, console)
    fleet.check()
    for _, report in reports:
        check_rows(report, strict=outputs.strict)


def _measure(
    request: BenchRequest,
    bundle: Bundle,
    targets: Sequence[Target],
    console: Console,
    *,
    bootstrap: bool,
) -> FleetResult:
    with bar(console) if console.is_terminal else nullcontext() as progress:
        tasks: dict[str, Any] = {}
        if progress is not None:
            tasks = {one.name: progress.add_task(one.name, total=None) for one in targets}

        def report(name: str, done_s: float, total_s: float, label: str) -> None:
            if progress is not None:
                text = f"{name}: {label}"
                share = done_s / max(total_s, 1e-9)
                progress.update(tasks[name], completed=share, total=1.0, description=text)

        def say(text: str, share: float = 0.0) -> None:
            if not share:
                console.print(text, markup=False)
            elif progress is not None:
                task = tasks[text.partition(":")[0]]
                progress.update(task, completed=share, total=1.0, description=text)

        return bench_on(targets, bundle, request, bootstrap=bootstrap, progress=report, say=say)


def _write(
    fleet: FleetResult,
    reports: Sequence[tuple[str, Report]],
    bundle: Bundle,
    outputs: Outputs,
) -> None:
    """JSON and CSV: of one machine as a bench here writes them, of several with their names."""
    if len(fleet.results) > 1:
        outputs.write_json(fleet.to_json())
        if outputs.csv is not None:
            fleet.write_csv(outputs.csv)
        return
    for _, report in reports:
        if outputs.json not in (None, "-"):
            folder = Path(str(outputs.json)).parent
            samples = os.path.relpath(bundle.path / str(report.samples_file), folder)
            report = dataclasses.replace(report, samples_file=samples)
        outputs.write_json(report.to_json())
        if outputs.csv is not None:
            write_csv(report, outputs.csv)


def _comparison(results: Sequence[TargetResult]) -> object:
    """Every device beside every other: files that take λ as an input, one line per batch."""
    columns = ["Device", "File", "Batch", "p50 ms", "p99 ms", "img/s", "W", "mJ/img", "Status"]
    table = plain_table(None, columns, left=2)
    for one in results:
        if one.report is None:
            table.add_row(one.target.name, "", "", "", "", "", "", "", "failed")
            continue
        for row in {(row.artifact, row.batch): row for row in one.report.knob_rows}.values():
            latency = row.latency_ms
            table.add_row(
                one.target.name,
                row.artifact,
                str(row.batch),
                figures(latency.p50 if latency else None),
                figures(latency.p99 if latency else None),
                figures(row.throughput_ips),
                figures(row.power.mean_w if row.power else None),
                figures(row.energy_mj),
                row.status,
            )
    return table
