"""`oat-edge bench`."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from oat_edge.bench.config import BenchConfig
from oat_edge.bench.report import save_report, write_csv
from oat_edge.bench.run import bench_bundle
from oat_edge.bench.table import rows_for_table
from oat_edge.bundle import Bundle
from oat_edge.cli.console import bar, output_console, plain_table
from oat_edge.cli.options import JsonFile, Seed, Width
from oat_edge.errors import InputError, UnstableError
from oat_edge.files import write_json
from oat_edge.operating_point import parse_list, select

if TYPE_CHECKING:
    from oat_edge.bench.report import Report


def bench(
    bundle: Annotated[Path, typer.Option(metavar="BUNDLE", help="Bundle folder.")] = Path(
        "bundles/latest"
    ),
    device: Annotated[str, typer.Option(help="cpu; this version measures no other.")] = "cpu",
    width: Width = "all",
    lam: Annotated[
        str, typer.Option("--lambda", metavar="LIST", help="λ to report: 0,0.3,1 | knots.")
    ] = "knots",
    batch: Annotated[str, typer.Option(metavar="LIST", help="Batch sizes, e.g. 1,16.")] = "1,16",
    quick: Annotated[
        bool, typer.Option("--quick", help="1 s and 100 requests each: a look, not a result.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads in latency mode. [default: all cores]")
    ] = None,
    json: JsonFile = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the rows.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the trade-off, .png or .svg.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 8 if a measurement was unstable.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Measure exported files on this device: latency, throughput, memory, SA and RA.

    The report is written to report.json in the bundle, with the raw samples beside it.
    """
    opened = Bundle.open(bundle)
    make = BenchConfig.quick if quick else BenchConfig
    config = make(
        device=device,  # type: ignore[arg-type]
        batches=_batches(batch),
        threads=threads,
        seed=seed,
    )
    widths = tuple(sorted({artifact.width for artifact in opened.of_format("onnx")}))
    lambdas = opened.spec.lambdas if lam.strip() == "knots" else parse_list(lam, "lambda")
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise InputError(f"plot is '{plot}': expected a name that ends in .png or .svg")
    console = output_console(json)
    report = run_bench(
        opened, config, select(width, widths, "width", every="all"), lambdas, console
    )
    if json == "-":
        json_module.dump(report.to_json(), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    elif json is not None:
        write_json(Path(json), report.to_json())
    if csv is not None:
        write_csv(report, csv)
    if plot is not None:
        from oat_edge.bench.plots import plot_tradeoff

        plot_tradeoff(report, plot)
        console.print(f"plot: {plot}", markup=False)
    unstable = sum(row.status == "unstable" for row in report.rows)
    if strict and unstable:
        raise UnstableError(
            f"{unstable} of {len(report.rows)} rows are unstable: quiet the machine and run again"
        )


def run_bench(
    bundle: Bundle,
    config: BenchConfig,
    widths: tuple[float, ...],
    lambdas: tuple[float, ...],
    console: Console,
) -> Report:
    """Bench with progress, write report.json into the bundle, and print the result."""
    if console.is_terminal:
        with bar(console) as progress:
            task = progress.add_task("bench", total=None)
            report, samples = bench_bundle(
                bundle,
                config,
                widths=widths,
                lambdas=lambdas,
                progress=lambda done_s, total_s, label: progress.update(
                    task, completed=done_s, total=total_s, description=label
                ),
            )
    else:
        console.print(f"bench of {bundle.path.name} on {config.device} …", markup=False)
        report, samples = bench_bundle(bundle, config, widths=widths, lambdas=lambdas)
    path = bundle.path / "report.json"
    report = save_report(report, samples, path)
    print_report(report, console)
    console.print(f"report: {path}", markup=False)
    return report


def print_report(report: Report, console: Console) -> None:
    """One screen: where, the table, what λ costs, and what to be wary of."""
    environment = report.environment
    model = environment.device.model or environment.device.machine
    console.print(
        f"{model}, {environment.device.cores} cores, "
        + ", ".join(f"{k} {v}" for k, v in environment.library_versions.items()),
        markup=False,
    )
    headers, rows = rows_for_table(report)
    table = plain_table(None, headers)
    previous = rows[0][0] if rows else ""
    for row in rows:
        if row[0] != previous:
            table.add_section()
            table.add_row()
        previous = row[0]
        table.add_row(*row)
    console.print(table)
    attacks = report.settings.get("attacks", {})
    console.print(
        f"SA, RA: standard accuracy, worst case over {', '.join(attacks) or 'no attack'}: an upper "
        "bound. Front: no other point of its batch is better in p50, SA and RA.",
        style="dim",
        markup=False,
    )
    for cost in report.lambda_cost:
        figure = f"{cost.ratio:.3f}x" if cost.ratio is not None else f"unknown: {cost.reason}"
        console.print(
            f"cost of λ as an input, width {cost.width:g}, batch {cost.batch}: {figure}",
            markup=False,
        )
    for text in _diagnoses(report):
        console.print(f"warning: {text}", style="yellow", markup=False)


def _diagnoses(report: Report) -> list[str]:
    """Warnings of all rows, each once, with the rows that share it counted."""
    counts: dict[str, int] = {}
    for row in report.rows:
        for text in row.warnings:
            if not text.startswith("energy_mj"):
                counts[text] = counts.get(text, 0) + 1
    return [f"{text} ({count} rows)" if count > 1 else text for text, count in counts.items()]


def _batches(text: str) -> tuple[int, ...]:
    values = parse_list(text, "batch")
    if any(value != int(value) for value in values):
        raise InputError(f"batch is '{text}': expected whole numbers")
    return tuple(int(value) for value in values)
