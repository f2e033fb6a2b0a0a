"""`oat-edge export`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from oat_edge.calib.config import CHECK_IMAGES, METHOD, NUM_IMAGES, QuantizeConfig
from oat_edge.cli.console import make_console, plain_table, steps
from oat_edge.cli.int8_line import int8_line
from oat_edge.cli.options import DataDir, Download, Seed, Width
from oat_edge.errors import InputError
from oat_edge.evaluation.config import ALIASES
from oat_edge.exporters.config import DEFAULT_PRECISION, ExportConfig, check_engine_target
from oat_edge.exporters.export import export_bundle
from oat_edge.memory import keep_freed_memory
from oat_edge.operating_point import select
from oat_edge.require import require
from oat_edge.runtime.artifacts import FORMATS
from oat_edge.runtime.recipe import Recipe

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
    format: Annotated[
        str, typer.Option(help="onnx; trt or trt-rtx: also an engine of TensorRT or TensorRT-RTX.")
    ] = "onnx",
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16 or int8.", show_default="fp32 for onnx, fp16 for engines"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="int8: cpu (x86-64 with VNNI) or trt.",
            show_default="cpu for onnx, trt for engines",
        ),
    ] = None,
    calib_method: Annotated[
        str | None,
        typer.Option(help="int8: ranges by minmax, entropy or percentile.", show_default=METHOD),
    ] = None,
    calib_samples: Annotated[
        int | None,
        typer.Option(help="int8: training images to calibrate with.", show_default=str(NUM_IMAGES)),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="int8: most points of SA or RA that it may cost at any λ.",
            show_default="0.5",
        ),
    ] = None,
    check_samples: Annotated[
        int | None,
        typer.Option(
            help="int8: images that this is measured on; 0: not at all.",
            show_default=str(CHECK_IMAGES),
        ),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="int8: also measure each layer alone.")
    ] = False,
    pin_lambda: Annotated[
        float | None,
        typer.Option(help="Fold this λ into the weights instead of taking λ as an input."),
    ] = None,
    floor: Annotated[
        bool,
        typer.Option(help="Also write the λ-pinned twin that bench measures the cost of λ with."),
    ] = True,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="MIN,OPT,MAX",
            help="Engines: images per request, fewest, usual and most.",
            show_default="1,8,32",
        ),
    ] = None,
    opt_level: Annotated[
        int | None, typer.Option(help="Engines: how long to look for fast kernels, 0 to 5.")
    ] = None,
    workspace_mb: Annotated[
        int | None, typer.Option(help="Engines: most device memory that a layer may use.")
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="Engines: later versions may load them."),
    ] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Engines: weights can be replaced without a build.")
    ] = False,
    no_defer: Annotated[
        bool,
        typer.Option("--no-defer", help="Engines: an error if they cannot be built here and now."),
    ] = False,
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

    With --format trt also an engine; where none can be built, bench builds it on the device.
    Each width also gets an attack pack: adversarial test images that bench replays on the engine.
    """
    require("torch", purpose="exporting")
    keep_freed_memory()
    from oat_edge.train.checkpoint import load_checkpoint

    if format not in FORMATS:
        raise InputError(f"format is '{format}': expected {', '.join(FORMATS)}")
    precision = precision or DEFAULT_PRECISION[format]
    given = {
        "batches": None if batch is None else _batches(batch),
        "opt_level": opt_level,
        "workspace_mb": workspace_mb,
        "version_compatible": version_compatible or None,
        "refit": refit or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    recipe = _recipe(format, precision, given, no_defer=no_defer)
    quantize = _quantize(
        format,
        precision,
        {
            "target": target,
            "method": calib_method,
            "num_images": calib_samples,
            "max_drop": max_drop,
            "check_images": check_samples,
            "sensitivity": sensitivity or None,
        },
    )
    loaded = load_checkpoint(checkpoint)
    config = ExportConfig(
        widths=select(width, loaded.spec.widths, "width", every="all"),
        precision=precision,
        quantize=quantize,
        recipe=recipe,
        defer=not no_defer,
        pin_lambda=pin_lambda,
        floor=floor,
        attack=ALIASES.get(attack, attack),
        attack_samples=attack_samples,
        seed=seed,
        replace=replace,
    )
    console = make_console(stderr=False)
    dataset = None
    if attack_samples or quantize is not None:
        dataset = load_test_data(loaded, data_dir=data_dir, download=download)
    out = out or BUNDLES / loaded.run
    run_export(loaded, [config], out, dataset, console)
    options = "" if out.parent == BUNDLES else f" --bundle {shlex.quote(str(out))}"
    for_gpu = recipe is not None or precision == "fp16"
    for_gpu = for_gpu or (quantize is not None and quantize.target == "trt")
    options += " --device cuda   (on the machine with the GPU)" if for_gpu else ""
    console.print(f"next: oat-edge bench{options}", markup=False)


def _recipe(format: str, precision: str, given: dict[str, Any], *, no_defer: bool) -> Recipe | None:
    """How engines are built; None for plain ONNX, which none of the engine's options fit."""
    if format != "onnx":
        return Recipe(format=format, precision=precision, **given)
    wrong = [*given, *(["no_defer"] if no_defer else [])]
    if wrong:
        options = ", ".join(
            "--" + name.replace("batches", "batch").replace("_", "-") for name in wrong
        )
        raise InputError(f"{options}: of engines only, format is 'onnx': --format trt")
    return None


INT8_OPTIONS = {
    "target": "--target",
    "method": "--calib-method",
    "num_images": "--calib-samples",
    "max_drop": "--max-drop",
    "check_images": "--check-samples",
    "sensitivity": "--sensitivity",
}


def _quantize(format: str, precision: str, options: dict[str, Any]) -> QuantizeConfig | None:
    """How int8 files are made; None for other precisions, which none of its options fit."""
    given = {name: value for name, value in options.items() if value is not None}
    if precision != "int8":
        if given:
            wrong = ", ".join(INT8_OPTIONS[name] for name in given)
            raise InputError(f"{wrong}: of int8 only, precision is '{precision}': --precision int8")
        return None
    if format != "onnx":
        check_engine_target(given.setdefault("target", "trt"))
    return QuantizeConfig(**given)


def _batches(text: str) -> tuple[int, ...]:
    """Read "1,8,32", or "8" for engines that take just that many."""
    try:
        batches = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"batch is '{text}': expected whole numbers such as 1,8,32") from None
    return batches * 3 if len(batches) == 1 else batches


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
    configs: Sequence[ExportConfig],
    out: Path,
    dataset: Dataset | None,
    console: Console,
) -> Bundle:
    """Export one after the other with progress, and print what the bundle holds then."""
    with steps(console) as say:
        for config in configs:
            bundle = export_bundle(checkpoint, config, out, dataset=dataset, say=say)
    table = plain_table(f"Bundle {out}", ["file", "width", "λ", "MB", "max |Δlogit|"])
    for artifact in sorted(bundle.artifacts, key=lambda a: (a.width, a.file)):
        lam = "input" if artifact.pinned_lambda is None else f"{artifact.pinned_lambda:g}"
        parity = f"{artifact.parity['max_abs_diff']:.1e}" if artifact.parity else "–"
        lam = "knots" if artifact.format == "attacks" else lam
        size = "deferred"
        if not artifact.deferred:
            size = f"{(bundle.path / artifact.file).stat().st_size / 1e6:.2f}"
        table.add_row(artifact.file, f"{artifact.width:g}", lam, size, parity)
    console.print(table)
    for artifact in bundle.artifacts:
        if artifact.format == "onnx" and artifact.calibration is not None:
            console.print(int8_line(artifact), markup=False)
    return bundle
