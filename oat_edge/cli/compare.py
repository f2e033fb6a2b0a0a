"""`oat-edge compare`."""

from __future__ import annotations

import dataclasses
import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from oat_edge.bundle import MANIFEST, Bundle
from oat_edge.cli.compare_summary import describe_failure, print_comparison
from oat_edge.cli.console import output_console, steps
from oat_edge.cli.options import JsonFile, Seed, Width
from oat_edge.errors import GateError, InputError
from oat_edge.evaluation.compare import CompareConfig, compare_bundle
from oat_edge.evaluation.reference import CHECKPOINT, find_checkpoint
from oat_edge.files import check_replaceable, write_json
from oat_edge.operating_point import parse_list, select
from oat_edge.runtime.artifacts import FORMATS


def compare(
    bundle: Annotated[Path, typer.Argument(metavar="[BUNDLE]", help="Bundle folder.")] = Path(
        "bundles/latest"
    ),
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Run it was made from.", show_default="the one in runs/ that fits"
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu; cuda adds ONNX Runtime on the GPU and engines.")
    ] = "cpu",
    width: Width = "all",
    lam: Annotated[
        str,
        typer.Option("--lambda", metavar="LIST", help="0,0.25,1 | knots | all (between them too)."),
    ] = "all",
    format: Annotated[
        str, typer.Option(metavar="LIST", help="onnx, trt, trt-rtx; all of them by default.")
    ] = "all",
    precision: Annotated[
        str, typer.Option(metavar="LIST", help="fp32, fp16, int8; all of them by default.")
    ] = "all",
    samples: Annotated[int, typer.Option(help="Images, each at every λ.")] = 64,
    json: JsonFile = None,
    seed: Seed = 0,
) -> None:
    """Compare what a bundle's files compute, in each back end, with the trained network.

    Over all knots and λ between them, alone and mixed in one batch: logit differences and
    agreement of classes. Exit 5 if a file is farther off than its precision allows.
    """
    config = CompareConfig(
        device=device,
        formats=_names(format),
        precisions=_names(precision),
        num_samples=samples,
        seed=seed,
    )
    if json not in (None, "-"):
        check_replaceable(Path(json))
    if (bundle / CHECKPOINT).is_file() and not (bundle / MANIFEST).exists():
        raise InputError(f"{bundle} is a run: compare takes the bundle that was exported from it")
    opened = Bundle.open(bundle)
    config = _on_bundle(config, opened, width, lam)
    console = output_console(json)
    loaded, reason = find_checkpoint(opened, checkpoint)
    with steps(console) as say:
        found = compare_bundle(opened, config, checkpoint=loaded, reason=reason, say=say)
    if json == "-":
        json_module.dump(found.to_json(), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    elif json is not None:  # first: a closed pipe ends the printing
        write_json(Path(json), found.to_json())
    print_comparison(found, console)
    if found.failed:
        raise GateError(describe_failure(found))


def _names(text: str) -> tuple[str, ...] | None:
    if text.strip() == "all":
        return None
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))


def _on_bundle(config: CompareConfig, bundle: Bundle, width: str, lam: str) -> CompareConfig:
    """The options that only a bundle gives their meaning."""
    networks = [artifact for name in FORMATS for artifact in bundle.of_format(name)]
    widths = tuple(sorted({artifact.width for artifact in networks}))
    lambdas = None if lam.strip() == "all" else bundle.spec.lambdas
    if lam.strip() not in ("all", "knots"):
        lambdas = parse_list(lam, "lambda")
    return dataclasses.replace(
        config, widths=select(width, widths, "width", every="all"), lambdas=lambdas
    )
