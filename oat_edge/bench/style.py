"""How all plots look, and how they are written."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from oat_edge.errors import InputError
from oat_edge.files import atomic_path

SUFFIXES = (".png", ".svg")
# Okabe & Ito's palette: told apart by all common forms of colour vision, and in grey by marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#222222"
# Captions, and what stands back.
PALE_INK = "#555555"
SEPARATOR = "   ·   "
"""Between the parts of a caption."""
LETTERS_PER_INCH = 16  # of a caption
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    "axes.labelsize": 8.5,
    "axes.titlesize": 9.5,
    "axes.edgecolor": PALE_INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    # Text stays text: selectable and searchable. The hash salt keeps files reproducible.
    "svg.fonttype": "none",
    "svg.hashsalt": "oat-edge",
}


def check_suffix(path: Path) -> None:
    """Raise `InputError` for a format that plots are not written in."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"plot is '{path}': expected a name that ends in .png or .svg")


def wrapped(caption: str, num_letters: int) -> list[str]:
    """Lines that break between the caption's parts, or inside a part that is a line by itself."""
    lines: list[str] = []
    for part in caption.split(SEPARATOR):
        if lines and len(lines[-1] + SEPARATOR + part) <= num_letters:
            lines[-1] += SEPARATOR + part
        else:
            lines += textwrap.wrap(part, num_letters)
    return lines


def save_figure(figure: Any, path: Path) -> None:
    """Write a .png (300 dpi) or .svg file atomically; equal figures give equal files."""
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=300, metadata=metadata)


def format_eps(eps: float) -> str:
    """ε as a fraction of 255 where it is one: "8/255"."""
    levels = eps * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else f"{eps:g}"


def count(number: int, noun: str) -> str:
    """ "1 epoch", "2 epochs"."""
    return f"{number} {noun}{'s' if number != 1 else ''}"
