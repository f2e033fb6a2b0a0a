"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oat_edge.operating_point import parse_number

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder with the data set's original files."),
]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch the data set's files if they are not found.")
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="Settings to start from; `oat-edge recipes` lists them.",
        show_default="default",
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything random.")
]
Width = Annotated[str, typer.Option("--width", help="Widths: 0.5 | 0.5,1.0 | all.", metavar="LIST")]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Also write JSON here; - is standard output."),
]


def fraction(name: str, text: str | None) -> float | None:
    """Read an optional "8/255"."""
    return None if text is None else parse_number(text, name)
