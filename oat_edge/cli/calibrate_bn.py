"""`oat-edge calibrate bn`."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from oat_edge.cli.console import output_console, plain_table, steps
from oat_edge.cli.options import DataDir, Download, JsonFile, Seed
from oat_edge.errors import DependencyError, GateError, InputError
from oat_edge.files import check_replaceable, write_json
from oat_edge.memory import keep_freed_memory
from oat_edge.operating_point import parse_list
from oat_edge.require import require

if TYPE_CHECKING:
    from oat_edge.calib.width_error import Offset, WidthError

# Points below the line that are worth a warning: the goal that was set for width 0.6.
USUAL_ERROR = 2.0


def bn(
    width: Annotated[
        str, typer.Option("--width", metavar="LIST", help="Widths to add: 0.6 | 0.6,0.9.")
    ],
    checkpoint: Annotated[
        Path, typer.Option(metavar="RUN", help="Run directory or checkpoint file.")
    ] = Path("runs/latest"),
    samples: Annotated[
        int, typer.Option(min=2, help="Training images that statistics are taken from.")
    ] = 2000,
    tune_steps: Annotated[
        int,
        typer.Option(min=0, help="Steps that train the new batch norms' affines; 0 keeps a blend."),
    ] = 200,
    tune_lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate of these steps.", show_default="training's own"),
    ] = None,
    attack_samples: Annotated[
        int, typer.Option(min=2, help="Validation images attacked at every λ.")
    ] = 500,
    max_error: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            min=0,
            help="Exit 5 and write no run if a new width is further below its neighbours' line.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="New run directory.", show_default="RUN-wWIDTH"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: JsonFile = None,
    data_dir: DataDir = None,
    download: Download = False,
    seed: Seed = 0,
) -> None:
    """Add widths that were not trained: they get batch norms of their own, nothing else changes.

    Statistics are taken from training images, clean and attacked; scale and shift are trained
    briefly. Makes a new run, which export, eval and bench take as any other. Each new width must
    lie between two trained ones; how far it is from the line between their accuracies is measured
    on the validation split, and more than 2 points below it is a warning.
    """
    torch = require("torch", purpose="calibrating batch norms")
    keep_freed_memory()
    from oat_edge.calib.bn_statistics import StatisticsConfig
    from oat_edge.calib.new_widths import calibrate_widths, reserved, save_run
    from oat_edge.cli.export import load_test_data
    from oat_edge.nn.added_width import trained_neighbours
    from oat_edge.train.checkpoint import load_checkpoint

    if device not in ("cpu", "cuda"):
        raise InputError(f"device is '{device}': expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise DependencyError("device is 'cuda', but torch sees no CUDA device: use --device cpu")
    if json not in (None, "-"):
        check_replaceable(Path(json))
    widths = parse_list(width, "width")
    source = load_checkpoint(checkpoint)
    for one in widths:
        trained_neighbours(source.spec, one)
    run_dir = out or _beside(checkpoint, widths)
    config = StatisticsConfig(samples=samples, tune_steps=tune_steps, tune_lr=tune_lr, seed=seed)
    console = output_console(json)
    dataset = load_test_data(source, data_dir=data_dir, download=download)
    with reserved(run_dir):
        with steps(console) as say:
            result = calibrate_widths(
                source, dataset, widths, config, num_attacked=attack_samples, device=device, say=say
            )
        for error in result.errors:
            _print_error(error, console)
        value = result.to_json()
        passed = max_error is None or all(100 * e.shortfall <= max_error for e in result.errors)
        value["run"] = None
        if passed:
            sha256 = save_run(result, run_dir)
            value["run"] = {"path": str(run_dir), "checkpoint_sha256": sha256}
    if json == "-":
        json_module.dump(value, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    elif json is not None:
        write_json(Path(json), value)
    if not passed:
        assert max_error is not None
        worst = max(result.errors, key=lambda error: error.shortfall)
        raise GateError(
            f"{_shortfall(worst)}, --max-error allows {max_error:g}: no run was written; "
            "train the width, or allow more"
        )
    for error in result.errors:
        if max_error is None and 100 * error.shortfall > USUAL_ERROR:
            remedy = "more --tune-steps or --samples may help, or train it"
            console.print(f"warning: {_shortfall(error)}: {remedy}", style="yellow")
    console.print(f"run: {run_dir}", markup=False)
    names = ",".join(f"{one:g}" for one in widths)
    where = "" if run_dir.parent == Path("runs") else f" --checkpoint {shlex.quote(str(run_dir))}"
    console.print(f"next: oat-edge export --width {names}{where}", markup=False)


def _beside(checkpoint: Path, widths: tuple[float, ...]) -> Path:
    """RUN-w0.6 beside RUN; `latest` is followed."""
    folder = (checkpoint if checkpoint.is_dir() else checkpoint.parent).resolve()
    path = folder.with_name(folder.name + "".join(f"-w{width:g}" for width in widths))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _print_error(error: WidthError, console: Console) -> None:
    """One row per λ; both accuracies in percent, their offsets in points."""
    below, above = (f"{one:g}" for one in error.neighbours)
    title = (
        f"Width {error.width:g}, validation split, %: SA of {error.num_samples} images, "
        f"RA of {error.num_attacked}"
    )
    others = [below, above, "off line"]
    new = f"{error.width:g}"
    table = plain_table(title, ["λ", "before", f"SA {new}", *others, f"RA {new}", *others])
    for point in error.points:
        before = point.standard.before
        table.add_row(
            f"{point.lam:g}",
            "–" if before is None else f"{100 * before:.1f}",
            *_cells(point.standard),
            *_cells(point.robust),
        )
    console.print(table)
    console.print(
        f"off line: points above (+) or below (-) the line between widths {below} and {above}, "
        "± standard error. before: SA with their statistics.",
        style="dim",
    )


def _cells(one: Offset) -> list[str]:
    shares = (one.accuracy, one.below, one.above)
    error = f"{100 * one.offset:+.1f} ± {100 * one.standard_error:.1f}"
    return [*[f"{100 * share:.1f}" for share in shares], error]


def _shortfall(error: WidthError) -> str:
    kind, point = error.worst()
    offset: Offset = getattr(point, kind)
    below, above = error.neighbours
    return (
        f"width {error.width:g} is {100 * error.shortfall:.1f} (± "
        f"{100 * offset.standard_error:.1f}) points below the line between {below:g} and "
        f"{above:g}, in {kind} accuracy at λ = {point.lam:g}"
    )
