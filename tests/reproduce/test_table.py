"""Tables and figure say what the report says."""

from __future__ import annotations

import pytest

from oat_edge.errors import InputError
from oat_edge.reproduce.figure import plot_comparison
from oat_edge.reproduce.report import assemble
from oat_edge.reproduce.table import accuracies, markdown
from tests.reproduce.made_up import models_of, scores_of


def make(**changes):
    config, models = models_of(**changes)
    scores = [
        scores_of(
            model,
            clean=lambda lam: 0.95 - 0.2 * lam,
            attacked=lambda lam: min(4 * lam, 0.6),
            suspect=model.group == "dedicated-lambda0",
        )
        for model in models
    ]
    return assemble(config, models, scores)


ALL = {"oat_per_width": True, "compare_recipe": "fast", "dedicated": (0.0, 0.3, 1.0)}


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_every_row_of_the_report_is_in_the_table(num_seeds):
    report = make(**ALL, num_seeds=num_seeds)
    header, *lines = accuracies(report.rows)
    assert [len(line) for line in lines] == [len(header)] * 18
    for row in report.rows:
        (line,) = [line for line in lines if line[:2] == [f"{row.width:g}", f"{row.lam:g}"]]
        name = "dedicated" if row.kind == "dedicated" else row.group
        if row.kind == "oat":
            assert header.count(f"{name} RA") == 1
        for what, one in (("SA", row.standard_accuracy), ("RA", row.robust_accuracy)):
            cell = line[header.index(f"{name} {what}")]
            assert cell.startswith(f"{100 * one.mean:.1f}")
            assert (" ± " in cell) == (num_seeds > 1)
            assert cell.endswith("?") == (what == "RA" and bool(row.suspect_seeds))
    shown = sum(cell != "–" for line in lines for cell in line[2:])
    assert shown == 2 * len(report.rows)


def test_markdown_holds_the_claims_the_conditions_and_the_warnings():
    report = make(**ALL)
    text = markdown(report)
    for comparison in report.comparisons:
        for claim in comparison.claims:
            assert f"- **{claim.status}**: {claim.text}" in text
    for part in (
        "all 80 test images",
        "RA: 50 images",
        "AutoAttack standard",
        "95 % intervals",
        *report.warnings,
    ):
        assert part in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("| 1 | 0.3")]
    assert widths and min(widths) >= 5


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_figure_has_a_curve_for_every_network_and_names_every_lambda(tmp_path, suffix):
    path = tmp_path / f"figure{suffix}"
    plot_comparison(make(**ALL), path)
    data = path.read_bytes()
    if suffix == ".png":
        assert data.startswith(b"\x89PNG")
        return
    text = data.decode()
    for part in (
        "OATS, width 1",
        "OATS-fast, width 0.5",
        "dedicated",
        "λ=0",
        "λ=1",
        "n = 50 (SA: 80)",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    "changes",
    [
        {"dedicated": (1.0,)},
        {"eval_widths": (1.0,), "num_seeds": 2},
        {"settings": {"lambdas": (0.0, 1.0), "widths": (1.0,)}, "dedicated": (0.0,)},
    ],
)
def test_any_plan_can_be_drawn(tmp_path, changes):
    report = make(**changes)
    plot_comparison(report, tmp_path / "a.svg")
    plot_comparison(report, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"figure\.pdf"):
        plot_comparison(make(), tmp_path / "figure.pdf")
