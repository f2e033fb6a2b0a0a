"""A bench on this machine: progress, report, and the files that were asked for."""

from __future__ import annotations

import dataclasses
import json as json_module
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from oat_edge.bench.heatmap import plot_transfer, transfer_paths
from oat_edge.bench.report import write_csv
from oat_edge.bench.request import (
    REPORT,
    RESULTS,
    BenchRequest,
    Planned,
    plan_request,
    run_request,
)
from oat_edge.bench.results import FIGURES, Results
from oat_edge.bench.style import check_suffix
from oat_edge.bundle import Bundle
from oat_edge.cli.console import bar, plain_table, steps
from oat_edge.cli.summary import print_report
from oat_edge.errors import InputError, UnstableError
from oat_edge.files import check_replaceable, write_json
from oat_edge.require import require

if TYPE_CHECKING:
    from oat_edge.bench.report import Report


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """Where a bench goes besides report.json, and whether an unstable one is an error."""

    json: str | None = None
    """A file, or "-" for standard output."""
    csv: Path | None = None
    plot: Path | None = None
    strict: bool = False

    def check(self, bundle: Bundle) -> None:
        """What would fail after minutes of measuring fails now."""
        for file in (None if self.json in (None, "-") else Path(str(self.json)), self.csv):
            if file is not None:
                check_replaceable(file)
        if self.plot is not None:
            check_replaceable(self.plot)
            _check_plot(self.plot, bundle)

    def write_json(self, value: dict[str, Any]) -> None:
        """The JSON that was asked for, if any."""
        if self.json == "-":
            json_module.dump(value, sys.stdout, indent=2, ensure_ascii=False)
            sys.stdout.write("\n")
        elif self.json is not None:
            write_json(Path(self.json), value)


def bench_here(request: BenchRequest, bundle: Bundle, outputs: Outputs, console: Console) -> None:
    """Measure here, print, and write."""
    outputs.check(bundle)
    report = run_bench(request, bundle, console)
    # The raw samples stay beside report.json in the bundle: say where from the other file.
    if outputs.json in (None, "-"):
        outputs.write_json(report.to_json())
    else:
        folder = Path(str(outputs.json)).parent
        samples = os.path.relpath(bundle.path / str(report.samples_file), folder)
        outputs.write_json(dataclasses.replace(report, samples_file=samples).to_json())
    if outputs.csv is not None:
        write_csv(report, outputs.csv)
    if outputs.plot is not None:
        draw(report, outputs.plot, console)
    check_rows(report, strict=outputs.strict)


def check_rows(report: Report, *, strict: bool) -> None:
    """Raise `UnstableError` if a measurement failed, or with `strict` was unstable."""
    if report.failures:
        name, reason = next(iter(report.failures.items()))
        more = f" (and {len(report.failures) - 1} more)" if len(report.failures) > 1 else ""
        raise UnstableError(
            f"{name} failed{more}: {reason}; --resume tries again and repeats nothing else"
        )
    unstable = sum(row.status == "unstable" for row in report.rows)
    if strict and unstable:
        raise UnstableError(
            f"{unstable} of {len(report.rows)} rows are unstable: quiet the machine and run again"
        )


def run_bench(request: BenchRequest, bundle: Bundle, console: Console) -> Report:
    """Bench with progress, write report.json into the bundle, and print the result."""
    try:
        report = _measure(request, bundle, console)
    except KeyboardInterrupt:
        kept = sum(one["kind"] in FIGURES for one in Results.peek(bundle.path / RESULTS).records)
        if kept:
            console.print(
                f"kept in {bundle.path / RESULTS}: {kept} turns and other measurements; the same "
                "command with --resume goes on",
                markup=False,
            )
        raise
    print_report(report, console)
    console.print(f"report: {bundle.path / REPORT}", markup=False)
    return report


def _measure(request: BenchRequest, bundle: Bundle, console: Console) -> Report:
    if console.is_terminal:
        with bar(console) as progress:
            task = progress.add_task("bench", total=None)

            def say(text: str, share: float = 0.0) -> None:
                if share:
                    progress.update(task, completed=share, total=1.0, description=text)
                    return
                console.print(text, markup=False)
                progress.reset(task)  # each step has its own time left

            return run_request(
                request,
                bundle,
                # A total that moves would make the bar forget its pace, and so the time left.
                progress=lambda done_s, total_s, label: progress.update(
                    task, completed=done_s / max(total_s, 1e-9), total=1.0, description=label
                ),
                say=say,
            )
    console.print(f"bench of {bundle.path.name} on {request.config.device} …", markup=False)
    with steps(console) as say:
        return run_request(request, bundle, say=say)


def list_cells(
    requests: Mapping[str, BenchRequest] | Mapping[None, BenchRequest],
    bundle: Bundle,
    outputs: Outputs,
    console: Console,
) -> None:
    """What `--dry-run` shows, of this machine (None) or of others by their names."""
    plans = []
    for name, request in requests.items():
        if name is not None:
            console.print(name, style="bold", markup=False)
        planned = plan_request(request, bundle, say=lambda text, share=0.0: console.print(text))
        table = plain_table(None, ["Cell", "File", "Batch", "About s", ""], left=2)
        for one in planned:
            batch = "" if one.cell.batch is None else str(one.cell.batch)
            done = "done" if one.done else f"{one.turns} turns done" if one.turns else ""
            table.add_row(one.cell.kind, one.cell.artifact.file, batch, f"{one.seconds:.0f}", done)
        console.print(table)
        left = [one for one in planned if not one.done]
        about_s = sum(one.seconds for one in left)
        more = " and what accuracy takes" if any(o.cell.kind == "accuracy" for o in left) else ""
        about = f", about {about_s:.0f} s{more}" if left else ""
        console.print(
            f"{len(left)} of {len(planned)} cells to measure{about}; nothing was measured"
        )
        plans += [{"target": name, **_cell_json(one)} for one in planned]
    outputs.write_json({"schema": "oat-edge/bench-plan/1", "cells": plans})


def _cell_json(one: Planned) -> dict[str, Any]:
    return {
        "kind": one.cell.kind,
        "artifact": one.cell.artifact.file,
        "batch": one.cell.batch,
        "about_s": one.seconds,
        "done": one.done,
        "turns_done": one.turns,
    }


def draw(report: Report, plot: Path, console: Console) -> None:
    """Draw the trade-off to `plot`, and the heat map of each transfer grid beside it."""
    from oat_edge.bench.captions import transfer_caption
    from oat_edge.bench.plots import plot_tradeoff

    plot_tradeoff(report, plot)
    console.print(f"plot: {plot}", markup=False)
    paths = transfer_paths(plot, [grid.attack for grid in report.transfer])
    for grid, path in zip(report.transfer, paths, strict=True):
        plot_transfer(grid, path, transfer_caption(report, grid))
        console.print(f"plot: {path}", markup=False)


def _check_plot(plot: Path, bundle: Bundle) -> None:
    """Raise if `plot` and what belongs to it could not be drawn."""
    check_suffix(plot)
    attacks = sorted({str(artifact.attack) for artifact in bundle.of_format("attacks")})
    # How many of them make a grid, and so their names, is known when the packs are read.
    for path in (*transfer_paths(plot, attacks), *transfer_paths(plot, attacks[:1])):
        check_replaceable(path)
    if not bundle.of_format("attacks"):
        raise InputError(
            f"bundle {bundle.path.name} has no attack packs, so no accuracies to plot: "
            "oat-edge export"
        )
    require("matplotlib", purpose="drawing plots")
