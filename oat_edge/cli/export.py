"""`oat-edge export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from oat_edge.cli.console import make_console, plain_table, steps
from oat_edge.cli.options import DataDir, Download, Seed, Width
from oat_edge.errors import InputError
from oat_edge.evaluation.config import ALIASES
from oat_edge.exporters.export import ExportConfig, export_bundle
from oat_edge.operating_point import select
from oat_edge.require import require

if TYPE_CHECKING:
    from oat_edge.bundle import Bundle
    from oat_edge.data import Dataset
    from oat_edge.train.checkpoint import Checkpoint

BUNDLES = Path("bundles")


def export(
    checkpoint: Annotated[
        Path, typer.Option(metavar="RUN", help="Run directory or checkpoint file.")
    ] = Path("runs/latest"),
    width: Width = "all",
    format: Annotated[str, typer.Option(help="onnx.")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32.")] = "fp32",
    pin_lambda: Annotated[
        float | None,
        typer.Option(help="Fold this λ into the weights instead of taking λ as an input."),
    ] = None,
    floor: Annotated[
        bool,
        typer.Option(help="Also write the λ-pinned twin that bench measures the cost of λ with."),
    ] = True,
    attack: Annotated[
        str, typer.Option(help="Of the attack packs: pgd20, apgd or autoattack (slow).")
    ] = "pgd20",
    attack_samples: Annotated[
        int, typer.Option(help="Test images attacked at every λ; 0 makes no packs.")
    ] = 500,
    out: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Bundle folder.", show_default="bundles/RUN"),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take another checkpoint's files out of the bundle.")
    ] = False,
    data_dir: DataDir = None,
    download: Download = False,
    seed: Seed = 0,
) -> None:
    """Export each width as one ONNX file with λ as an input, checked against PyTorch.

    Each width also gets an attack pack: adversarial test images that bench replays on the engine.
    """
    require("torch", purpose="exporting")
    from oat_edge.train.checkpoint import load_checkpoint

    if precision != "fp32":
        raise InputError(f"precision is '{precision}': this version exports fp32")
    loaded = load_checkpoint(checkpoint)
    config = ExportConfig(
        widths=select(width, loaded.spec.widths, "width", every="all"),
        format=format,
        pin_lambda=pin_lambda,
        floor=floor,
        attack=ALIASES.get(attack, attack),
        attack_samples=attack_samples,
        seed=seed,
        replace=replace,
    )
    console = make_console(stderr=False)
    dataset = None
    if attack_samples:
        dataset = load_test_data(loaded, data_dir=data_dir, download=download)
    out = out or BUNDLES / loaded.run
    run_export(loaded, config, out, dataset, console)
    console.print(f"next: oat-edge bench{'' if out.parent == BUNDLES else f' --bundle {out}'}")


def load_test_data(checkpoint: Checkpoint, *, data_dir: Path | None, download: bool) -> Dataset:
    """The data set that the checkpoint was trained on; its test split must be the same."""
    from oat_edge.data import load

    config = checkpoint.info["train"]
    dataset = load(
        config["data"],
        data_dir=data_dir,
        download=download,
        train_samples=config["train_samples"],
        seed=config["seed"],
    )
    if dataset.record["splits"] != checkpoint.info["data"]["splits"]:
        raise InputError(
            f"data '{config['data']}' is not what the checkpoint was trained on (its images have "
            "changed): point --data-dir to the same files"
        )
    return dataset


def run_export(
    checkpoint: Checkpoint,
    config: ExportConfig,
    out: Path,
    dataset: Dataset | None,
    console: Console,
) -> Bundle:
    """Export with progress, and print what the bundle holds."""
    with steps(console) as say:
        bundle = export_bundle(checkpoint, config, out, dataset=dataset, say=say)
    table = plain_table(f"Bundle {out}", ["file", "width", "λ", "MB", "max |Δlogit|"])
    for artifact in sorted(bundle.artifacts, key=lambda a: (a.width, a.file)):
        megabytes = (bundle.path / artifact.file).stat().st_size / 1e6
        lam = "input" if artifact.pinned_lambda is None else f"{artifact.pinned_lambda:g}"
        parity = f"{artifact.parity['max_abs_diff']:.1e}" if artifact.parity else "–"
        lam = "knots" if artifact.format == "attacks" else lam
        table.add_row(artifact.file, f"{artifact.width:g}", lam, f"{megabytes:.2f}", parity)
    console.print(table)
    return bundle
