"""`oat-edge reproduce`."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from oat_edge.cli.console import output_console
from oat_edge.cli.options import DataDir, Download, JsonFile, RecipeName
from oat_edge.cli.reproduce_run import Reproduction, print_plan, print_report, write_report
from oat_edge.evaluation.config import ATTACKS, parse_attacks
from oat_edge.files import check_replaceable, write_json
from oat_edge.memory import keep_freed_memory
from oat_edge.operating_point import parse_list
from oat_edge.reproduce.plan import BUDGETS, ReproduceConfig, chosen
from oat_edge.reproduce.settings import parse_settings
from oat_edge.train.recipes import DEFAULT
from oat_edge.train.recipes import recipe as settings_of


def reproduce(
    data: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="As of train.", show_default="digits")
    ] = None,
    budget: Annotated[
        str, typer.Option(help=f"{', '.join(BUDGETS)}: epochs, images and attacks.")
    ] = "small",
    recipe: RecipeName = None,
    compare_recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Train OATS by this recipe too, and compare the two."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of training for every network: arch=wrn-16-1, epochs=6, "
            "train_samples=5000, widths=0.5,1 …; may be repeated.",
        ),
    ] = None,
    dedicated: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="λ to train a network of its own for; knots is all."),
    ] = None,
    oat_per_width: Annotated[
        bool, typer.Option("--oat-per-width", help="Train an OAT network of each width, too.")
    ] = False,
    eval_width: Annotated[
        str | None, typer.Option(metavar="LIST", help="Widths to attack.", show_default="all")
    ] = None,
    attack: Annotated[
        str | None, typer.Option(metavar="LIST", help="pgd, apgd, autoattack, square.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Test images to attack.")] = None,
    seeds: Annotated[int, typer.Option(help="Train every network with so many seeds.")] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Train and attack this network alone (or 'dedicated-*'); may be repeated.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and how long it takes.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder.", show_default="reproduce/DATA-ARCH-BUDGET")
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: JsonFile = None,
) -> None:
    """The paper's comparison: one OATS network against a dedicated network for every λ.

    Trains and attacks all of them alike, and writes results.json, table.md and figure.png. Stop it
    at any time, the same command goes on. With --only a scheduler can spread the networks over
    machines that share the folder; the same command without it puts them together.
    """
    if json not in (None, "-"):
        check_replaceable(Path(json))
    config = ReproduceConfig(
        data=settings_of(data, recipe or DEFAULT).data,
        budget=budget,
        recipe=recipe or DEFAULT,
        compare_recipe=compare_recipe,
        settings=parse_settings(set_ or []),
        dedicated=_dedicated(dedicated),
        oat_per_width=oat_per_width,
        eval_widths=_numbers(eval_width, "eval width"),
        attacks=_attacks(attack),
        num_attacked=samples,
        num_seeds=seeds,
    )
    console = output_console(json)
    keep_freed_memory()
    work = Reproduction.open(
        config, out, data_dir=data_dir, download=download, device=device, console=console
    )
    todo = chosen(work.models, tuple(only)) if only else work.models
    print_plan(work, todo)
    if dry_run:
        return
    scores = []
    for model in todo:
        scores.append(work.scores(model))
        if not only:
            report = write_report(work, scores)  # of what is done: the rest may take days
    if only:
        console.print("done; the same command without --only puts all networks together")
        return
    print_report(report, work.folder, console)
    if json == "-":
        json_module.dump(report.to_json(), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    elif json is not None:
        write_json(Path(json), report.to_json())


def _dedicated(text: str | None) -> tuple[float, ...] | None:
    """As `ReproduceConfig.dedicated`: nothing stands for every knot."""
    return () if text == "knots" else _numbers(text, "dedicated λ")


def _attacks(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else parse_attacks(text) or ATTACKS


def _numbers(text: str | None, name: str) -> tuple[float, ...] | None:
    return None if text in (None, "all") else parse_list(str(text), name)
