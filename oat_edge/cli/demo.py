"""`oat-edge demo`: the whole road on the embedded digits."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from oat_edge.cli.bench_run import draw, run_bench
from oat_edge.cli.console import make_console
from oat_edge.cli.options import Seed
from oat_edge.cli.train_run import open_trainer, run_training
from oat_edge.require import require


def demo(
    epochs: Annotated[int | None, typer.Option(help="Shorter or longer training.")] = None,
    seed: Seed = 0,
) -> None:
    """Train on real digits, export every width, bench here, choose an operating point.

    Leaves a run in runs/latest, and in bundles/latest report.json, tradeoff.png (accuracy,
    robustness, latency), tradeoff-transfer-*.png (attacks crafted at other settings) and
    operating_point.json (the choice, for open_runner).
    """
    console = make_console(stderr=False)
    for module in ("torch", "sklearn", "onnx", "onnxscript", "onnxruntime", "matplotlib"):
        require(module, purpose="the demo")
    from pathlib import Path

    from oat_edge.bench.config import BenchConfig
    from oat_edge.bench.request import BenchRequest
    from oat_edge.calib.config import QuantizeConfig
    from oat_edge.cli.calibrate import choose
    from oat_edge.cli.export import run_export
    from oat_edge.exporters.config import ExportConfig
    from oat_edge.train.checkpoint import load_checkpoint

    started = time.monotonic()
    console.print("1/4  oat-edge train", style="bold", markup=False)
    # On images this small bf16 gains no time, and any CPU trains the same way.
    given = {"data": "digits", "seed": seed, "amp": "off"}
    if epochs is not None:
        given["epochs"] = epochs
    trainer = open_trainer(given, out=None)
    run_training(trainer, console)

    console.print(
        "\n2/4  oat-edge export, then the narrowest width again with --precision int8",
        style="bold",
        markup=False,
    )
    checkpoint = load_checkpoint(trainer.run_dir)
    out = Path("bundles") / checkpoint.run
    widths = checkpoint.spec.widths
    configs = [
        ExportConfig(widths=widths, seed=seed),
        ExportConfig(widths=widths[:1], precision="int8", quantize=QuantizeConfig(), seed=seed),
    ]
    bundle = run_export(checkpoint, configs, out, trainer.dataset, console)

    console.print(
        "\n3/4  oat-edge bench --device cpu --quick --attack pack,square",
        style="bold",
        markup=False,
    )
    quick = BenchConfig.quick(seed=seed, attacks=("pack", "square"))
    report = run_bench(BenchRequest(config=quick), bundle, console)
    draw(report, out / "tradeoff.png", console)

    console.print("\n4/4  oat-edge calibrate --prefer robust", style="bold", markup=False)
    choose(bundle=out, prefer="robust", max_lambdas=4)
    console.print(f"done in {time.monotonic() - started:.0f} s", markup=False)
