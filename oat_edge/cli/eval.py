"""`oat-edge eval`."""

from __future__ import annotations

import dataclasses
import json as json_module
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from oat_edge.bench.heatmap import transfer_paths
from oat_edge.bench.inputs import check_device
from oat_edge.bench.style import check_suffix
from oat_edge.bundle import MANIFEST, Bundle
from oat_edge.cli.console import bar, output_console, say_left_out
from oat_edge.cli.eval_summary import print_evaluation
from oat_edge.cli.options import DataDir, Download, JsonFile, Seed, Width, fraction
from oat_edge.errors import DependencyError, InputError
from oat_edge.evaluation.config import BUNDLE_ATTACKS, EvalConfig, parse_attacks
from oat_edge.evaluation.report import REPORT, SAMPLES, Evaluation
from oat_edge.files import check_replaceable, write_json
from oat_edge.memory import keep_freed_memory
from oat_edge.operating_point import parse_list, select
from oat_edge.require import require
from oat_edge.runtime.artifacts import choose_widths

if TYPE_CHECKING:
    from oat_edge.evaluation.meter import Progress
    from oat_edge.evaluation.report import EvalReport
    from oat_edge.network_spec import NetworkSpec


def evaluate(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|BUNDLE", help="What to attack: a run or a bundle.")
    ] = Path("runs/latest"),
    attack: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="pgd, pgd20-int8 (of a bundle), apgd, autoattack, square; all of them by default.",
        ),
    ] = "all",
    samples: Annotated[
        int | None,
        typer.Option(
            help="Test images, a seeded choice.", show_default="100; all that a bundle's packs hold"
        ),
    ] = None,
    width: Width = "all",
    lam: Annotated[
        str, typer.Option("--lambda", metavar="LIST", help="λ to attack: 0,0.3,1 | knots.")
    ] = "knots",
    eps: Annotated[
        str | None,
        typer.Option(help="Radius, e.g. 8/255.", show_default="what it was trained for"),
    ] = None,
    queries: Annotated[int, typer.Option(help="Of Square, per image.")] = 5000,
    transfer: Annotated[
        bool, typer.Option(help="Replay images crafted at every other width and λ.")
    ] = True,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what an earlier evaluation has done.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the figures, .png or .svg.")
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    seed: Seed = 0,
) -> None:
    """Attack every operating point and say how robust it is, with 95 % intervals.

    A run is attacked white-box: PGD-20, APGD, AutoAttack (its authors' code) and Square, with
    checks for masked gradients. A bundle's files have no gradients: attack packs are replayed on
    them, and Square attacks the files themselves; files of several precisions are set side by
    side. Stop it at any time: the same command goes on
    where it stopped.
    """
    config = EvalConfig(
        attacks=parse_attacks(attack),
        num_samples=samples,
        eps=fraction("eps", eps),
        num_queries=queries,
        transfer=transfer,
        seed=seed,
    )
    for file in (None if json in (None, "-") else Path(json), plot):
        if file is not None:
            check_replaceable(file)
    if plot is not None:
        _check_plot(plot)
    if not path.exists():
        raise InputError(f"there is no run and no bundle at {path}: make one with `oat-edge train`")
    console = output_console(json)
    if path.suffix in (".onnx", ".npz", ".json"):
        raise InputError(f"{path} is a file of a bundle: name the bundle's folder")
    if (path / MANIFEST).exists():
        folder, evaluation = _of_bundle(path, config, width, lam, fresh, console, device=device)
    else:
        folder, evaluation = _of_run(
            path, config, width, lam, fresh, console,
            data_dir=data_dir, download=download, device=device,
        )  # fmt: skip
    report = evaluation.save(folder)
    print_evaluation(report, console)
    console.print(f"report: {folder / REPORT}")
    if json == "-":
        json_module.dump(report.to_json(), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    elif json is not None:
        # The per-image results stay beside eval.json: say where from here.
        samples_file = os.path.relpath(folder / SAMPLES, Path(json).parent)
        write_json(Path(json), dataclasses.replace(report, samples_file=samples_file).to_json())
    if plot is not None:
        _draw(report, plot, console)


def _of_bundle(
    path: Path,
    config: EvalConfig,
    width: str,
    lam: str,
    fresh: bool,
    console: Console,
    *,
    device: str,
) -> tuple[Path, Evaluation]:
    from oat_edge.evaluation.engine import evaluate_bundle

    check_device(device)
    bundle = Bundle.open(path)
    _check_writable(bundle.path)
    widths, left_out = choose_widths(bundle, width, device=device)
    say_left_out(console, left_out, device)
    with show_progress(console) as progress:
        evaluation = evaluate_bundle(
            bundle,
            config,
            widths=widths,
            lambdas=_lambdas(lam, bundle.spec),
            device=device,
            fresh=fresh,
            progress=progress,
        )
    return bundle.path, evaluation


def _of_run(
    path: Path,
    config: EvalConfig,
    width: str,
    lam: str,
    fresh: bool,
    console: Console,
    *,
    data_dir: Path | None,
    download: bool,
    device: str,
) -> tuple[Path, Evaluation]:
    torch = require("torch", purpose="attacking a PyTorch network")
    keep_freed_memory()
    from oat_edge.cli.export import load_test_data
    from oat_edge.evaluation.network import evaluate_network
    from oat_edge.train.checkpoint import load_checkpoint

    if device not in ("cpu", "cuda"):
        raise InputError(f"device is '{device}': expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise DependencyError("device is 'cuda', but torch sees no CUDA device: use --device cpu")
    checkpoint = load_checkpoint(path)
    widths = select(width, checkpoint.spec.widths, "width", every="all")
    lambdas = _lambdas(lam, checkpoint.spec)
    dataset = load_test_data(checkpoint, data_dir=data_dir, download=download)
    # `latest` may be re-pointed meanwhile.
    folder = (path if path.is_dir() else path.parent).resolve()
    _check_writable(folder)
    with show_progress(console) as progress:
        evaluation = evaluate_network(
            checkpoint,
            config,
            dataset=dataset,
            widths=widths,
            lambdas=lambdas,
            folder=folder,
            device=device,
            fresh=fresh,
            progress=progress,
        )
    return folder, evaluation


def _check_writable(folder: Path) -> None:
    """Raise before minutes of attacks what saving the report would raise after them."""
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} cannot be written, {REPORT} goes there: copy it")


def _lambdas(text: str, spec: NetworkSpec) -> tuple[float, ...]:
    if text.strip() == "knots":
        return spec.lambdas
    lambdas, (low, high) = parse_list(text, "lambda"), (spec.lambdas[0], spec.lambdas[-1])
    for lam in lambdas:
        if not low <= lam <= high:
            raise InputError(f"lambda is {lam:g}: this network has [{low:g}, {high:g}]")
    return lambdas


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """A bar on a terminal, elsewhere a line as each part begins; says how to go on after Ctrl-C."""
    try:
        with _shown(console) as progress:
            yield progress
    except KeyboardInterrupt:
        console.print("stopped: what is done is kept, the same command goes on from here")
        raise


@contextmanager
def _shown(console: Console) -> Iterator[Progress]:
    if console.is_terminal:
        with bar(console) as live:
            task = live.add_task("eval", total=None)
            yield lambda done, total, label: live.update(
                task, completed=done, total=total, description=label
            )
        return
    said = ""

    def say(done: float, total: float, label: str) -> None:
        nonlocal said
        if label != said:
            said = label
            console.print(f"{100 * done / total if total else 100:3.0f} %  {label}")

    yield say


def _check_plot(plot: Path) -> None:
    """Raise if `plot` and what belongs to it could not be drawn."""
    check_suffix(plot)
    # How many heat maps there will be, and so their names, is not known yet.
    for file in (*transfer_paths(plot, BUNDLE_ATTACKS), *transfer_paths(plot, BUNDLE_ATTACKS[:1])):
        check_replaceable(file)
    require("matplotlib", purpose="drawing plots")


def _draw(report: EvalReport, plot: Path, console: Console) -> None:
    from oat_edge.evaluation.plots import plot_evaluation

    for path in plot_evaluation(report, plot):
        console.print(f"plot: {path}")
