from __future__ import annotations

import dataclasses
import re
import struct
import sys

import pytest

from oat_edge.bench.captions import transfer_caption
from oat_edge.bench.plots import plot_tradeoff
from oat_edge.bench.style import COLOURS
from oat_edge.errors import DependencyError, InputError


def test_png_is_printable_size_at_300_dpi(benched, tmp_path):
    path = tmp_path / "plot.png"
    plot_tradeoff(benched.report, path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (2160, 1050)
    assert b"pHYs" in data and struct.unpack(">I", data[data.index(b"pHYs") + 4 :][:4]) == (11811,)


def svg_texts(path):
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())]


def test_svg_says_what_is_shown(benched, tmp_path):
    path = tmp_path / "plot.svg"
    plot_tradeoff(benched.report, path)
    texts = svg_texts(path)
    assert {"width 0.5", "width 1", "Pareto front", "Standard accuracy (%)"} <= set(texts)
    (caption,) = [text for text in texts if "n = " in text]
    assert all(part in caption for part in ("n = 12", "apgd, pgd20, transfer", "ε = 8/255"))
    assert "λ=0" in texts and "λ=1" in texts
    assert "0.3" not in texts  # only the pinned file has 0.3 here, and it is left out
    assert any("batch 1" in text for text in texts)


def test_the_same_report_gives_the_same_file(benched, tmp_path):
    paths = [tmp_path / name for name in ("a.svg", "b.svg")]
    for path in paths:
        plot_tradeoff(benched.report, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def with_p50(report, p50_ms):
    """The report with each width's latency replaced."""
    rows = tuple(
        dataclasses.replace(
            row, latency_ms=dataclasses.replace(row.latency_ms, p50=p50_ms[row.width])
        )
        for row in report.rows
    )
    return dataclasses.replace(report, rows=rows)


@pytest.mark.parametrize(("slow_ms", "log"), [(9.0, False), (11.0, True)])
def test_latency_is_logarithmic_beyond_a_factor_of_ten(benched, tmp_path, slow_ms, log):
    path = tmp_path / "plot.svg"
    plot_tradeoff(with_p50(benched.report, {0.5: 1.0, 1.0: slow_ms}), path)
    # A linear axis starts at 0 and has a tick there; a logarithmic one cannot.
    panel = path.read_text().partition('id="axes_2"')[2]
    ticks = re.findall(r'id="xtick_\d+".*?<text[^>]*>([^<]*)</text>', panel, re.DOTALL)
    assert ("0" in ticks) is not log
    assert {"1", "2", "5", "10"} <= set(ticks) or not log


def test_one_width_and_one_lambda_is_enough(benched, tmp_path):
    row = next(row for row in benched.report.rows if row.worst is not None)
    plot_tradeoff(dataclasses.replace(benched.report, rows=(row,)), tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["plot.pdf", "plot", "plot.jpeg"])
def test_other_suffixes_are_refused(benched, tmp_path, name):
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        plot_tradeoff(benched.report, tmp_path / name)


def test_no_accuracy_no_plot(benched, tmp_path):
    rows = tuple(row for row in benched.report.rows if row.worst is None)
    with pytest.raises(InputError, match="--attack-samples"):
        plot_tradeoff(dataclasses.replace(benched.report, rows=rows), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_it_says_what_to_install(benched, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"oat-edge\[report\]"):
        plot_tradeoff(benched.report, tmp_path / "a.png")


def test_caption_of_a_heat_map_says_what_was_measured_where(benched):
    for grid in benched.report.transfer:
        caption = transfer_caption(benched.report, grid)
        parts = (f"attack {grid.attack}, ε = 8/255", "n = 12", "onnxruntime-cpu fp32")
        assert all(part in caption for part in parts)


def test_a_caption_of_many_parts_stays_inside_the_figure(benched, tmp_path, monkeypatch):
    from oat_edge.bench import plots

    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    many = {f"pgd20-number-{i}": 0.5 for i in range(6)}
    rows = [
        dataclasses.replace(row, robust_accuracy={**row.robust_accuracy, **many})
        for row in benched.report.knob_rows
        if row.worst is not None
    ]
    plot_tradeoff(dataclasses.replace(benched.report, rows=tuple(rows)), tmp_path / "many.png")
    (figure,) = drawn
    box = figure._supxlabel.get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    assert figure._supxlabel.get_text().count("\n") >= 1


def test_formats_and_precisions_are_lines_of_their_own(benched, tmp_path):
    half = tuple(
        dataclasses.replace(row, precision="fp16", format="trt", artifact=f"half-{row.artifact}")
        for row in benched.report.knob_rows
    )
    report = dataclasses.replace(benched.report, rows=(*benched.report.rows, *half))
    plot_tradeoff(report, tmp_path / "both.svg")
    texts = svg_texts(tmp_path / "both.svg")
    names = {f"width {w}, {kind}" for w in ("0.5", "1") for kind in ("onnx fp32", "trt fp16")}
    assert names <= set(texts) and "width 1" not in texts
    (caption,) = [text for text in texts if "n = " in text]
    assert "onnxruntime-cpu, 1 threads" in caption and "fp16" not in caption


def of_one_width(report, shift):
    """Width 1 alone, and again as an engine whose accuracies are less by `shift`."""
    rows = [row for row in report.knob_rows if row.width == 1.0 and row.worst is not None]
    again = [
        dataclasses.replace(
            row,
            format="trt",
            precision="fp16",
            artifact="w1.00-fp16.engine",
            standard_accuracy=row.standard_accuracy - shift,
        )
        for row in rows
    ]
    return dataclasses.replace(report, rows=(*rows, *again))


def test_kinds_of_one_width_have_colours_of_their_own(benched, tmp_path):
    plot_tradeoff(of_one_width(benched.report, 0.0), tmp_path / "one.svg")
    text = (tmp_path / "one.svg").read_text().lower()
    assert all(colour.lower() in text for colour in COLOURS[:2])
    assert COLOURS[2].lower() not in text


def test_points_that_lie_on_each_other_are_labelled_once(benched, tmp_path):
    def labels(shift):
        plot_tradeoff(of_one_width(benched.report, shift), tmp_path / "one.svg")
        left = (tmp_path / "one.svg").read_text().partition('id="axes_2"')[0]
        return re.findall(r"<text([^>]*)>(λ=[01])</text>", left)

    together, apart = labels(0.0), labels(0.08)
    assert sorted(name for _, name in together) == ["λ=0", "λ=1"]
    # In the colour of the points that are seen, which are drawn last.
    assert all(COLOURS[1].lower() in style.lower() for style, _ in together)
    assert len(apart) > len(together)


def test_caption_of_a_heat_map_names_only_what_the_grid_is_of(benched):
    half = tuple(
        dataclasses.replace(row, precision="fp16", format="trt", artifact=f"half-{row.artifact}")
        for row in benched.report.knob_rows
    )
    report = dataclasses.replace(benched.report, rows=(*benched.report.rows, *half))
    (grid, *_) = report.transfer
    assert "fp16" not in transfer_caption(report, grid)
    # A report from before does not say which.
    unknown = dataclasses.replace(report, transfer_artifacts=None)
    assert "fp16" in transfer_caption(unknown, grid)
