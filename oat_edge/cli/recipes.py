"""`oat-edge recipes`."""

from __future__ import annotations

import json as json_module
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from oat_edge.bench.style import format_eps
from oat_edge.cli.console import output_console, plain_table
from oat_edge.cli.options import JsonFile
from oat_edge.config import TrainConfig
from oat_edge.files import write_json
from oat_edge.train.recipes import NAMED, RECIPES, measured, recipe

LINE_WIDTH = 100


def recipes(json: JsonFile = None) -> None:
    """List the recipes of `oat-edge train --recipe`: what they set, and what they came to."""
    listed = [_entry(name, data) for name in NAMED for data in RECIPES if _fits(name, data)]
    value = {"schema": "oat-edge/recipes/1", "recipes": listed}
    if json == "-":
        json_module.dump(value, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    elif json is not None:
        write_json(Path(json), value)
    _print(output_console(json))


def _fits(name: str, data: str) -> bool:
    return NAMED[name].data in (None, data)


def _entry(name: str, data: str) -> dict[str, Any]:
    figures = measured(name, data)
    return {
        "recipe": name,
        "data": data,
        "description": NAMED[name].description,
        "settings": recipe(data, name).to_json(),
        "measured": None if figures is None else asdict(figures),
    }


def _print(console: Console) -> None:
    table = plain_table(None, ["recipe", "data", "what"], left=3)
    for name, one in NAMED.items():
        table.add_row(name, one.data or "any", one.description)
    console.print(table)
    console.print()
    wide = console.width >= LINE_WIDTH
    settings = ["epochs", "batch", "lr", "ε", "PGD"] if wide else ["epochs", "ε"]
    columns = ["recipe", "data", "network", *settings, "time", "SA λ=0 /\nRA λ=1"]
    table = plain_table(None, columns, left=3)
    notes = []
    for data in RECIPES:
        for config, names in _by_settings(data):
            figures = measured(names[0], data)
            time = accuracy = "–"
            if figures is not None:
                time = f"{figures.minutes:g} min"
                shares = figures.standard_accuracy, figures.robust_accuracy
                accuracy = " / ".join(f"{100 * share:.1f}" for share in shares)
                notes.append(
                    f"{names[0]} on {data}: {figures.machine}; RA against {figures.attacks}; "
                    f"{figures.source}"
                )
            cells = {
                "epochs": str(config.epochs),
                "batch": str(config.batch_size),
                "lr": f"{config.lr:g}",
                "ε": format_eps(config.eps),
                "PGD": str(config.attack_steps),
            }
            table.add_row(
                "\n".join(f"{name}," if name != names[-1] else name for name in names),
                data,
                config.arch,
                *[cells[name] for name in settings],
                time,
                accuracy,
            )
    console.print(table)
    for text in [*notes, "–: not measured. All settings: --json -"]:
        for line in textwrap.wrap(text, min(console.width, LINE_WIDTH)):
            console.print(line, style="dim")


def _by_settings(data: str) -> list[tuple[TrainConfig, list[str]]]:
    """Recipes for this data, those that set the same together."""
    groups: list[tuple[TrainConfig, list[str]]] = []
    for name in NAMED:
        if not _fits(name, data):
            continue
        config = recipe(data, name)
        same = next((names for other, names in groups if other == config), None)
        if same is None:
            groups.append((config, [name]))
        else:
            same.append(name)
    return groups
