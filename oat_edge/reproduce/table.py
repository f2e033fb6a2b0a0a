"""The tables of a comparison, as cells: the terminal and the Markdown file say the same."""

from __future__ import annotations

from collections.abc import Sequence

from oat_edge.bench.style import count, format_eps
from oat_edge.reproduce.claims import in_points
from oat_edge.reproduce.report import OBJECTIVE, Comparison, ReproduceReport, Row
from oat_edge.reproduce.spread import Spread

Cells = list[list[str]]
"""The header, then the rows."""
TITLES = {
    "dedicated": "OATS less the dedicated networks",
    "oat": "OATS less one OAT per width",
    "compared": "OATS less {other}",
}


def accuracies(rows: Sequence[Row]) -> Cells:
    """A row per λ and width, SA and RA of every group that has it in a column of its own."""
    groups = {"dedicated" if row.kind == "dedicated" else row.group: row.kind for row in rows}
    cells = [["width", "λ", *[f"{name} {what}" for name in groups for what in ("SA", "RA")]]]
    for width, lam in sorted({(row.width, row.lam) for row in rows}):
        line = [f"{width:g}", f"{lam:g}"]
        for name in groups:
            row = next(
                (
                    row
                    for row in rows
                    if (row.width, row.lam) == (width, lam)
                    and name in (row.group, "dedicated" if row.kind == "dedicated" else None)
                ),
                None,
            )
            line += ["–", "–"] if row is None else _accuracy(row)
        cells.append(line)
    return cells


def differences(comparison: Comparison) -> Cells:
    """A row per point, in points with 95 % intervals."""
    cells = [["width", "λ", "SA", "RA", OBJECTIVE]]
    for one in comparison.differences:
        cells.append(
            [
                f"{one.width:g}",
                f"{one.lam:g}",
                in_points(one.standard_accuracy),
                in_points(one.robust_accuracy),
                in_points(one.objective),
            ]
        )
    return cells


def title(comparison: Comparison) -> str:
    """Of a table of differences."""
    return TITLES[comparison.kind].format(other=comparison.differences[0].other)


def notes(report: ReproduceReport) -> list[str]:
    """What every figure of the report depends on, a sentence each."""
    evaluation, first = report.evaluation, report.models[0]
    seeds = sorted({model["seed"] for model in report.models})
    several = len(seeds) > 1
    spread = " ± standard deviation between seeds;" if several else ""
    return [
        f"{report.settings['data']}, {first['arch']}, {first['training_images']} training images, "
        f"{count(first['epochs'], 'epoch')}, seed{'s' if several else ''} "
        f"{', '.join(map(str, seeds))}, "
        f"ε {format_eps(evaluation['eps'])}.",
        f"SA and RA in %,{spread} SA: all {report.rows[0].num_test} test images. "
        f"RA: {evaluation['num_samples']} images ({evaluation['images']}), right clean and under "
        f"every attack, an upper bound; {evaluation['mode']}.",
        "Differences in points, paired on the same images, in brackets 95 % intervals.",
    ]


def markdown(report: ReproduceReport) -> str:
    """The whole report as Markdown."""
    parts = [" ".join(notes(report)), _grid(accuracies(report.rows))]
    for comparison in report.comparisons:
        parts.append(f"{title(comparison)}:")
        parts.append(_grid(differences(comparison)))
        parts.append(
            "\n".join(
                f"- **{claim.status}**: {claim.text} ({claim.evidence})"
                for claim in comparison.claims
            )
        )
    parts += [f"Note: {text}" for text in report.warnings]
    return "\n\n".join(parts) + "\n"


def _grid(cells: Cells) -> str:
    header, *rows = cells
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _accuracy(row: Row) -> list[str]:
    mark = "?" if row.suspect_seeds else ""
    return [_percent(row.standard_accuracy), _percent(row.robust_accuracy) + mark]


def _percent(one: Spread) -> str:
    spread = "" if one.std is None else f" ± {100 * one.std:.1f}"
    return f"{100 * one.mean:.1f}{spread}"
