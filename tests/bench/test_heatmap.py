from __future__ import annotations

import itertools
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from oat_edge.bench.heatmap import plot_transfer, transfer_paths
from oat_edge.bench.style import SEPARATOR
from oat_edge.errors import DependencyError, InputError
from oat_edge.evaluation.transfer import TransferGrid
from oat_edge.operating_point import OperatingPoint, grid

KNOTS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)
CAPTION = SEPARATOR.join(["some device", "attack pgd20, ε = 8/255", "n = 256"])


def make_grid(targets, sources, *, share=None):
    """Shares that all differ, unless `share` is given for all."""
    shape = len(targets), len(sources)
    shares = np.linspace(0.05, 0.85, shape[0] * shape[1]).reshape(shape)
    return TransferGrid(
        attack="pgd20",
        sources=tuple(sources),
        targets=tuple(targets),
        robust_accuracy=tuple(
            tuple(float(value) if share is None else share for value in row) for row in shares
        ),
        num_samples=256,
    )


ONE = make_grid(grid((0.5,), (1.0,)), grid((0.5,), (1.0,)))
FULL = make_grid(grid((0.5, 0.75, 1.0), KNOTS), grid((0.5, 0.75, 1.0), KNOTS))
FLAT = make_grid(grid((0.5, 1.0), (0.0,)), grid((0.25, 0.5, 1.0), (0.0,)))
SIZES = {"1x1": ONE, "2x3": FLAT, "18x18": FULL}


def svg_texts(path):
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())]


@pytest.mark.parametrize("name", SIZES)
def test_png_fits_a_page_at_300_dpi(name, tmp_path):
    path = tmp_path / "map.png"
    plot_transfer(SIZES[name], path, CAPTION)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert 3.5 * 300 <= width <= 7.2 * 300 and 300 <= height <= 8 * 300
    assert struct.unpack(">I", data[data.index(b"pHYs") + 4 :][:4]) == (11811,)


@pytest.mark.parametrize("name", SIZES)
def test_svg_has_every_figure_lambda_and_width_as_text(name, tmp_path):
    one, path = SIZES[name], tmp_path / "map.svg"
    plot_transfer(one, path, CAPTION)
    texts = svg_texts(path)
    for share in itertools.chain(*one.robust_accuracy):
        assert f"{100 * share:.0f}" in texts
    for points in (one.sources, one.targets):
        for width in {point.width for point in points}:
            assert f"width {width:g}" in texts or f"w {width:g}" in texts
        assert {f"{point.lam:g}" for point in points} <= set(texts)
    assert {"own operating point", "worst in its row"} <= set(texts)
    assert all(part in " ".join(texts) for part in CAPTION.split(SEPARATOR))


def test_each_width_is_named_once_along_each_side(tmp_path):
    plot_transfer(FULL, tmp_path / "map.svg", CAPTION)
    texts = svg_texts(tmp_path / "map.svg")
    for width in ("0.5", "0.75", "1"):
        assert texts.count(f"width {width}") == 2
    for lam in ("0.1", "0.2", "0.3", "0.4"):
        assert texts.count(lam) == 6


@pytest.mark.parametrize("share", [0.0, 1.0, 0.5, None])
def test_equal_and_unknown_figures_can_be_drawn(share, tmp_path):
    points = grid((0.5,), (0.0, 1.0))
    one = make_grid(points, points, share=share)
    if share is None:
        one = TransferGrid(
            attack="pgd20",
            sources=one.sources,
            targets=one.targets,
            robust_accuracy=((None, None), (None, 0.25)),
            num_samples=4,
        )
    plot_transfer(one, tmp_path / "map.svg", "")
    texts = svg_texts(tmp_path / "map.svg")
    if share is None:
        assert texts.count("–") == 3 and "25" in texts
    else:
        assert texts.count(f"{100 * share:.0f}") >= 4


def test_all_unknown_is_no_error(tmp_path):
    point = (OperatingPoint(0.5, 0.0),)
    none = TransferGrid(
        attack="a", sources=point, targets=point, robust_accuracy=((None,),), num_samples=1
    )
    plot_transfer(none, tmp_path / "map.png", CAPTION)
    assert (tmp_path / "map.png").is_file()


def test_the_same_grid_gives_the_same_file(tmp_path):
    for name in ("a.svg", "b.svg"):
        plot_transfer(FULL, tmp_path / name, CAPTION)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_measured_grid_can_be_drawn(benched, tmp_path):
    for one in benched.report.transfer:
        plot_transfer(one, tmp_path / f"{one.attack}.png", CAPTION)
    assert len(list(tmp_path.iterdir())) == 2


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        plot_transfer(ONE, tmp_path / "map.pdf", CAPTION)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"oat-edge\[report\]"):
        plot_transfer(ONE, tmp_path / "map.png", CAPTION)


def test_maps_lie_beside_the_plot_and_are_named_by_attack_only_if_there_are_several():
    plot = Path("out/trade.off.png")
    assert transfer_paths(plot, ["pgd20"]) == (Path("out/trade.off-transfer.png"),)
    assert transfer_paths(plot, ["apgd", "pgd20"]) == (
        Path("out/trade.off-transfer-apgd.png"),
        Path("out/trade.off-transfer-pgd20.png"),
    )
    assert transfer_paths(plot, []) == ()
