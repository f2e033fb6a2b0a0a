"""`oat-edge bench`."""

from __future__ import annotations

import dataclasses
import json as json_module
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from oat_edge.bench.config import BenchConfig
from oat_edge.bench.heatmap import plot_transfer, transfer_paths
from oat_edge.bench.inputs import check_device, fit_batches
from oat_edge.bench.report import save_report, write_csv
from oat_edge.bench.run import bench_bundle
from oat_edge.bench.style import check_suffix
from oat_edge.bundle import Bundle
from oat_edge.cli.console import bar, output_console, say_left_out, steps
from oat_edge.cli.options import JsonFile, Seed, Width
from oat_edge.cli.summary import print_report
from oat_edge.errors import InputError, UnstableError
from oat_edge.files import check_replaceable, write_json
from oat_edge.operating_point import parse_list
from oat_edge.require import require
from oat_edge.runtime.artifacts import choose_widths

if TYPE_CHECKING:
    from oat_edge.bench.report import Report


def bench(
    path: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", hidden=True)] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Bundle folder.", show_default="bundles/latest"),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda for an NVIDIA GPU (a Jetson's too).")
    ] = "cpu",
    width: Width = "all",
    format: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Formats: onnx,trt,trt-rtx.",
            show_default="onnx on a CPU; engines on a GPU, onnx if there are none",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Precisions: fp32,fp16,int8.", show_default="all that suit"
        ),
    ] = None,
    lam: Annotated[
        str, typer.Option("--lambda", metavar="LIST", help="λ to report: 0,0.3,1 | knots.")
    ] = "knots",
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Batch sizes.",
            show_default="1,16, or the nearest that engines take",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="1 s and 100 requests each: a look, not a result.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads in latency mode.", show_default="all cores"),
    ] = None,
    attack: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="What RA is measured with: pack (replay), square (against the engine itself).",
        ),
    ] = "pack",
    queries: Annotated[
        int, typer.Option(min=1, help="Square's queries per image and operating point.")
    ] = 1000,
    no_cuda_graph: Annotated[
        bool, typer.Option("--no-cuda-graph", help="On a GPU, start each kernel by itself.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also take the times of layers.")
    ] = False,
    no_transfer: Annotated[
        bool, typer.Option("--no-transfer", help="Replay packs only where they were crafted for.")
    ] = False,
    json: JsonFile = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the rows.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw trade-off and transfer, .png or .svg.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 8 if a measurement was unstable.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Measure exported files on this device: latency, throughput, memory, SA and RA.

    The report is written to report.json in the bundle, with the raw samples beside it.
    """
    if path is not None and bundle is not None:
        raise InputError(f"two bundles are named, {path} and {bundle}: expected one")
    opened = Bundle.open(path or bundle or Path("bundles/latest"))
    make = BenchConfig.quick if quick else BenchConfig
    config = make(
        device=device,  # type: ignore[arg-type]
        batches=BenchConfig().batches if batch is None else _batches(batch),
        formats=_names(format),
        precisions=_names(precision),
        cuda_graph=not no_cuda_graph,
        profile=profile,
        threads=threads,
        attacks=_names(attack) or (),
        transfer=not no_transfer,
        queries=queries,
        seed=seed,
    )
    chosen = {"formats": config.formats, "precisions": config.precisions}
    lambdas = opened.spec.lambdas if lam.strip() == "knots" else parse_list(lam, "lambda")
    # What would fail after minutes of measuring fails now.
    for file in (None if json in (None, "-") else Path(json), csv, plot):
        if file is not None:
            check_replaceable(file)
    if not os.access(opened.path, os.W_OK):
        raise InputError(
            f"{opened.path} cannot be written, report.json goes there: copy the bundle"
        )
    if plot is not None:
        _check_plot(plot, opened)
    console = output_console(json)
    check_device(device)
    chosen_widths, left_out = choose_widths(opened, width, device=device, **chosen)
    say_left_out(console, left_out, device)
    if batch is None:
        config, told = fit_batches(opened, chosen_widths, config)
        if told is not None:
            console.print(told, markup=False)
    report = run_bench(opened, config, chosen_widths, lambdas, console)
    if json == "-":
        json_module.dump(report.to_json(), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    elif json is not None:
        # The raw samples stay beside report.json in the bundle: say where from here.
        samples = os.path.relpath(opened.path / str(report.samples_file), Path(json).parent)
        write_json(Path(json), dataclasses.replace(report, samples_file=samples).to_json())
    if csv is not None:
        write_csv(report, csv)
    if plot is not None:
        draw(report, plot, console)
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

            def building(text: str, share: float = 0.0) -> None:
                if not share:
                    progress.reset(task)  # each build has its own time left
                progress.update(task, completed=share, total=1.0, description=text)

            report, samples = bench_bundle(
                bundle,
                config,
                widths=widths,
                lambdas=lambdas,
                progress=lambda done_s, total_s, label: progress.update(
                    task, completed=done_s, total=total_s, description=label
                ),
                say=building,
            )
    else:
        console.print(f"bench of {bundle.path.name} on {config.device} …", markup=False)
        with steps(console) as say:
            report, samples = bench_bundle(bundle, config, widths=widths, lambdas=lambdas, say=say)
    path = bundle.path / "report.json"
    report = save_report(report, samples, path)
    print_report(report, console)
    console.print(f"report: {path}", markup=False)
    return report


def draw(report: Report, plot: Path, console: Console) -> None:
    """Draw the trade-off to `plot`, and the heat map of each transfer grid beside it."""
    from oat_edge.bench.plots import plot_tradeoff, transfer_caption

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


def _names(text: str | None) -> tuple[str, ...] | None:
    """ "a, b" as ("a", "b"), each once."""
    return None if text is None else tuple(dict.fromkeys(name.strip() for name in text.split(",")))


def _batches(text: str) -> tuple[int, ...]:
    values = parse_list(text, "batch")
    if any(value != int(value) for value in values):
        raise InputError(f"batch is '{text}': expected whole numbers")
    return tuple(int(value) for value in values)
