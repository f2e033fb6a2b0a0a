"""The options of `bench` that decide how robust accuracy is measured, and what they leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

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


def test_transfer_can_be_left_out(folder, main):
    ended = main("bench", "--bundle", folder, *QUICK, "--no-transfer")
    assert ended.code == 0, ended.err
    assert "worst case over pgd20, an upper bound" in ended.out and "Transfer:" not in ended.out
    report = json.loads((folder / "report.json").read_text())
    assert report["transfer"] == [] and report["settings"]["transfer"] is False


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
