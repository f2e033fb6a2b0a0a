"""The options of `bench` that decide how robust accuracy is measured, and what they leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.gpus import without_gpu

pytestmark = pytest.mark.usefixtures("frozen_heap")


QUICK = ("--quick", "--batch", 1, "--width", 1, "--lambda", "0,1")


@pytest.fixture
def folder(tiny_bundle, tmp_path):
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


def check_refused(ended, *parts):
    (line,) = ended.err.splitlines()
    assert ended.code == 2 and line.startswith("error: ")
    assert all(part in line for part in parts), line


def test_square_and_transfer_are_in_report_summary_and_plots(folder, main):
    ended = main(
        "bench", "--bundle", folder, *QUICK, "--attack", "square, pack", "--queries", 20,
        "--json", "-", "--plot", "plots/a.svg",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["settings"]["attacks"]["square"]["queries"] == 20
    for row in report["rows"]:
        assert set(row["robust_accuracy"]) == {"pgd20", "square", "transfer", "worst"}
    (grid,) = report["transfer"]
    assert grid["attack"] == "pgd20" and grid["num_samples"] == 24
    assert {source["width"] for source in grid["sources"]} == {0.5, 1.0}
    assert "worst case over pgd20, square (20 queries) and transfer, an upper bound" in ended.err
    assert "\nTransfer: images crafted at one other λ or width lower an attack's RA " in ended.err
    written = sorted(path.name for path in Path("plots").iterdir())
    assert written == ["a-transfer.svg", "a.svg"]
    assert all(f"plot: plots/{name}\n" in ended.err for name in written)


@pytest.mark.parametrize("attack", ["pgd", "", "pack,", "pack;square", "Square"])
def test_other_attacks_are_refused_with_the_choices(folder, main, attack):
    ended = main("bench", "--bundle", folder, *QUICK, "--attack", attack)
    check_refused(ended, "attack is '", "pack", "square")
    assert not (folder / "report.json").exists()


def test_no_queries_are_refused(folder, main):
    check_refused(main("bench", "--bundle", folder, *QUICK, "--queries", 0), "'--queries'")


def test_square_without_packs_says_where_images_come_from(tiny_run, main):
    bare = ("--width", 1, "--attack-samples", 0, "--out", "bare")
    assert main("export", "--checkpoint", tiny_run, *bare).code == 0
    ended = main("bench", "--bundle", "bare", *QUICK, "--attack", "square")
    check_refused(ended, "bundle bare has no attack packs", "oat-edge export")


def test_a_heat_map_does_not_replace_what_is_no_file(folder, main):
    Path("a-transfer.png").mkdir()
    ended = main("bench", "--bundle", folder, *QUICK, "--plot", "a.png")
    check_refused(ended, "a-transfer.png is a folder or a device")
    assert not (folder / "report.json").exists()


def test_profile_is_in_the_report_and_the_slowest_layers_on_the_screen(folder, main):
    ended = main(
        "bench", "--bundle", folder, "--quick", "--width", 1, "--lambda", 0, "--batch", 3,
        "--profile",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    report = json.loads((folder / "report.json").read_text())
    assert [(one["artifact"], one["batch"]) for one in report["profile"]] == [
        ("w1.00-fp32.onnx", 3),
    ]
    for one in report["profile"]:
        assert set(one) == {"artifact", "batch", "backend", "layers", "total_ms"}
        assert all(set(layer) == {"name", "kind", "ms", "share"} for layer in one["layers"])
    (largest,) = report["profile"]
    title = f"w1.00-fp32.onnx, batch 3: the slowest of {len(largest['layers'])} layers"
    assert ended.out.count("the slowest of") == 1 and title in ended.out
    slowest = max(largest["layers"], key=lambda layer: layer["ms"])
    below = ended.out[ended.out.index(title) :].splitlines()
    assert slowest["name"] in below[2] and len(below[2:12]) == 10
    assert below[2].rstrip().endswith(f"{100 * slowest['share']:.1f}")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--format", "trt"), ("no trt file", "oat-edge export")),
        (("--format", "tensorrt"), ("format is 'tensorrt'", "onnx, trt, trt-rtx")),
        (("--precision", "fp16"), ("fp16", "oat-edge export")),
        (("--precision", "half"), ("precision is 'half'", "fp32, fp16, int8")),
    ],
)
def test_what_the_bundle_or_the_device_has_not_is_refused(folder, main, options, parts):
    check_refused(main("bench", "--bundle", folder, *QUICK, *options), *parts)
    assert not (folder / "report.json").exists()


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=without_gpu), "jetson"])
def test_a_device_that_is_not_there_is_exit_3_and_nothing_is_written(folder, main, device):
    ended = main("bench", "--bundle", folder, *QUICK, "--device", device)
    line = ended.err.splitlines()[-1]
    assert ended.code == 3 and line.startswith("error: ") and not (folder / "report.json").exists()


def test_settings_hold_what_was_chosen(folder, main):
    chosen = ("--format", "onnx", "--precision", "fp32, int8", "--no-cuda-graph", "--no-transfer")
    ended = main("bench", "--bundle", folder, *QUICK, *chosen)
    assert ended.code == 0, ended.err
    assert "worst case over pgd20, an upper bound" in ended.out and "Transfer:" not in ended.out
    assert "slowest" not in ended.out
    report = json.loads((folder / "report.json").read_text())
    settings = report["settings"]
    assert report["transfer"] == report["profile"] == [] and settings["transfer"] is False
    assert settings["formats"] == ["onnx"] and settings["precisions"] == ["fp32", "int8"]
    assert settings["cuda_graph"] is False and settings["profile"] is False
