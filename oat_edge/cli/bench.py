"""`oat-edge bench`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from oat_edge.bench.config import BenchConfig
from oat_edge.bench.request import BenchRequest
from oat_edge.bundle import Bundle
from oat_edge.cli.bench_remote import bench_remotely
from oat_edge.cli.bench_run import Outputs, bench_here, list_cells
from oat_edge.cli.console import output_console
from oat_edge.cli.options import JsonFile, Seed, Width
from oat_edge.device.system import System
from oat_edge.errors import InputError
from oat_edge.operating_point import parse_list
from oat_edge.remote.fleet import request_for
from oat_edge.remote.targets import targets_from


def bench(
    path: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", hidden=True)] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Bundle folder.", show_default="bundles/latest"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu; cuda for an NVIDIA GPU; jetson for the board; or a name of "
            "`oat-edge devices`.",
            show_default="cpu",
        ),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="USER@HOST", help="Bench there, over SSH; may be given repeatedly."),
    ] = None,
    hosts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Bench on all of these, a host a line.")
    ] = None,
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="Install oat-edge on a host that lacks it.")
    ] = False,
    processor: Annotated[
        str | None,
        typer.Option(
            metavar="gpu|cpu", help="Of a Jetson: what runs the network.", show_default="gpu"
        ),
    ] = None,
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
    lock_clocks: Annotated[
        bool,
        typer.Option("--lock-clocks", help="Fixed clocks while measuring (root); put back."),
    ] = False,
    power_mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE", help="Of a Jetson: measure in this nvpmodel mode; put back after."
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="End a cell that says nothing for so long.",
            show_default=f"{BenchConfig().timeout_s:g}",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a bench that was stopped.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be measured, and measure nothing.")
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
    sysroot: Annotated[
        Path | None,
        typer.Option(metavar="DIR", hidden=True, help="Describe a recorded machine."),
    ] = None,
) -> None:
    """Measure exported files on a device: latency, throughput, memory, energy, SA and RA.

    The report is written to report.json in the bundle, with the raw samples beside it; of other
    machines to report-NAME.json. Each finished cell goes to results.jsonl: --resume goes on there.
    """
    if path is not None and bundle is not None:
        raise InputError(f"two bundles are named, {path} and {bundle}: expected one")
    opened = Bundle.open(path or bundle or Path("bundles/latest"))
    system = System() if sysroot is None else System(sysroot)
    targets = targets_from(host or [], hosts, device, system=system)
    if bootstrap and not targets:
        raise InputError("--bootstrap installs on another machine: name one with --host")
    kind = targets[0].device if targets else device or "cpu"
    make = BenchConfig.quick if quick else BenchConfig
    config = make(
        device=kind,  # type: ignore[arg-type]
        processor=processor,  # type: ignore[arg-type]
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
        timeout_s=BenchConfig().timeout_s if timeout is None else timeout,
    )
    request = BenchRequest(
        config=config,
        width=width,
        lam=lam,
        batches_named=batch is not None,
        resume=resume,
        lock_clocks=lock_clocks,
        power_mode=power_mode,
        sysroot=None if sysroot is None else str(sysroot.absolute()),
    )
    outputs = Outputs(json=json, csv=csv, plot=plot, strict=strict)
    console = output_console(json)
    if dry_run:
        # What other machines have done already, they know themselves.
        asked = {one.name: replace(request_for(one, request), resume=False) for one in targets}
        list_cells(asked or {None: request}, opened, outputs, console)
    elif targets:
        bench_remotely(request, opened, targets, outputs, console, bootstrap=bootstrap)
    else:
        bench_here(request, opened, outputs, console)


def _names(text: str | None) -> tuple[str, ...] | None:
    """ "a, b" as ("a", "b"), each once."""
    return None if text is None else tuple(dict.fromkeys(name.strip() for name in text.split(",")))


def _batches(text: str) -> tuple[int, ...]:
    values = parse_list(text, "batch")
    if any(value != int(value) for value in values):
        raise InputError(f"batch is '{text}': expected whole numbers")
    return tuple(int(value) for value in values)
