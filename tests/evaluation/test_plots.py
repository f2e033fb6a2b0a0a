from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from oat_edge.bench.environment import collect
from oat_edge.bench.report import BundleId
from oat_edge.errors import DependencyError, InputError
from oat_edge.evaluation.checks import Check
from oat_edge.evaluation.outcome import Outcome
from oat_edge.evaluation.plots import plot_evaluation
from oat_edge.evaluation.report import EvalReport, Subject, make_row
from oat_edge.evaluation.transfer import transfer_grids
from oat_edge.operating_point import grid

ALL = ("pgd20", "apgd", "autoattack", "square")
# λ moves accuracy to robustness: share right clean, and under each attack.
CLEAN = {0.0: 0.97, 0.1: 0.95, 0.2: 0.94, 0.3: 0.93, 0.4: 0.92, 1.0: 0.86}
ROBUST = {0.0: 0.05, 0.1: 0.34, 0.2: 0.42, 0.3: 0.46, 0.4: 0.49, 1.0: 0.55}


def make_report(
    widths=(0.5, 1.0), lambdas=(0.0, 0.3, 1.0), attacks=ALL, n=1000, transfer=True, pinned=False
):
    points = grid(widths, lambdas)
    outcomes = {}
    for index, point in enumerate(points):
        order = np.random.default_rng(index).permutation(n) / n
        clean = order < CLEAN.get(point.lam, 0.9) - 0.1 * (1 - point.width)
        robust = ROBUST.get(point.lam, 0.5) - 0.1 * (1 - point.width)
        attacked = {
            name: clean & (order < robust + 0.03 * (len(attacks) - i))
            for i, name in enumerate(attacks)
        }
        strongest = [name for name in attacks if name != "square"][-1]
        transferred = {
            (strongest, other): clean & (order < robust + 0.2) for other in points if other != point
        }
        outcomes[point] = Outcome(
            clean=clean, attacked=attacked, transferred=transferred if transfer else {}
        )
    subject = Subject(
        artifact="w.onnx", sha256="f" * 64, format="onnx", backend="ort-cpu", precision="fp32",
        pinned=pinned,
    )  # fmt: skip
    checks = [Check(name="square", flagged=False, evidence="")]
    seconds = dict.fromkeys((*attacks, "checks"), 3.0)
    return EvalReport(
        environment=collect(),
        settings={
            "eps": 8 / 255, "seed": 0, "mode": "AutoAttack standard", "num_samples": n,
            "images": f"digits, test split, seeded choice of {n}", "transfer": transfer,
        },
        bundle=BundleId(run="run", checkpoint_sha256="c" * 64),
        rows=tuple(
            make_row(subject, point, one, checks, seconds=seconds)
            for point, one in outcomes.items()
        ),
        transfer=transfer_grids(outcomes),
        samples_file=None,
        warnings=(),
    )  # fmt: skip


def texts(path):
    root = ElementTree.parse(path).getroot()
    nodes = root.iter("{http://www.w3.org/2000/svg}text")
    return ["".join(node.itertext()).strip() for node in nodes]


def test_an_svg_says_in_words_what_is_seen(tmp_path):
    assert plot_evaluation(make_report(), tmp_path / "a.svg") == (
        tmp_path / "a.svg", tmp_path / "a-transfer.svg",
    )  # fmt: skip
    said = texts(tmp_path / "a.svg")
    for text in ("width 0.5", "width 1", "Accuracy (%)", "λ", "standard", "worst case"):
        assert text in said
    for name in ("PGD-20", "APGD", "AutoAttack", "Square", "transfer"):
        assert said.count(name) == 1, "once, in the legend"
    for part in ("n = 1,000", "ε = 8/255", "seed 0", "AutoAttack standard", "95 % intervals"):
        assert sum(part in text for text in said) == 1, "once, in a line of the caption"
    assert sum(text == "0.3" for text in said) == 2


@pytest.mark.parametrize(
    "report",
    [
        {"widths": (1.0,), "lambdas": (0.3,)},
        {"widths": (0.25, 0.5, 0.75, 1.0)},
        {"attacks": ("pgd20",), "transfer": False},
        {"pinned": True, "transfer": False},
        {"n": 1},
    ],
)
def test_any_report_can_be_drawn(report, tmp_path):
    written = plot_evaluation(make_report(**report), tmp_path / "a.png")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert sorted(tmp_path.iterdir()) == sorted(written)


def test_what_was_not_run_is_not_in_the_legend(tmp_path):
    plot_evaluation(make_report(attacks=("pgd20",), transfer=False), tmp_path / "a.svg")
    assert not {"APGD", "AutoAttack", "Square", "transfer"} & set(texts(tmp_path / "a.svg"))


def test_an_attack_looks_the_same_whatever_else_was_run(tmp_path):
    """Square is light blue with a diamond, beside AutoAttack or alone."""
    for attacks in (ALL, ("pgd20", "square")):
        plot_evaluation(make_report(attacks=attacks), tmp_path / "a.svg")
        assert (tmp_path / "a.svg").read_text().lower().count("#56b4e9") > 1


@pytest.mark.parametrize("widths", [(1.0,), (0.5, 1.0), (0.5, 0.75, 1.0), (0.2, 0.5, 0.75, 1.0)])
@pytest.mark.parametrize(
    "mode", ["AutoAttack standard", "fast: pgd20 and apgd " * 4], ids=["short", "long"]
)
def test_nothing_is_cut_off_and_no_panel_is_empty(widths, mode, tmp_path, monkeypatch):
    """Every word lies on the sheet, by matplotlib's own measure; every panel seen has lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from oat_edge.evaluation import plots

    seen = []

    def measure(figure, path):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box, renderer = figure.bbox, canvas.get_renderer()
        panels = [axes for axes in figure.axes if axes.get_visible()]
        assert len(panels) == len(widths) and all(axes.lines for axes in panels)
        for artist in (*figure.legends, *figure.texts, figure._supxlabel, *panels):
            extent = artist.get_tightbbox(renderer)
            assert extent.x0 >= 0 and extent.x1 <= box.x1, artist
            assert extent.y0 >= -1 and extent.y1 <= box.y1 + 1, artist
        seen.append(path)

    monkeypatch.setattr(plots, "save_figure", measure)
    report = make_report(widths, tuple(CLEAN))
    settings = {**report.settings, "mode": mode}
    plot_evaluation(dataclasses.replace(report, settings=settings, transfer=()), tmp_path / "a.png")
    assert len(seen) == 1


def test_equal_reports_give_equal_files(tmp_path):
    for name in ("a.svg", "b.svg"):
        plot_evaluation(make_report(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_another_suffix_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match=r"a\.pdf'.*ends in \.png or \.svg"):
        plot_evaluation(make_report(), tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"pip install 'oat-edge\[report\]'"):
        plot_evaluation(make_report(), tmp_path / "a.png")
