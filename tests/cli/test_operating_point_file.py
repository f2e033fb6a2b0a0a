"""What `calibrate` writes: never over something else, and the same file for `inspect`."""

from __future__ import annotations

from pathlib import Path

import pytest

from oat_edge import open_runner
from oat_edge.calib.operating_point_file import OperatingPointFile
from oat_edge.errors import InputError
from tests.bench.made_up import change
from tests.calib.points import WIDE, report_of, save


def test_inspect_shows_a_choice_and_refuses_other_json(here, main):
    assert main("calibrate", "--no-search", "--min-robust", 0.2, "--out", "point.json").code == 0
    file = OperatingPointFile.load("point.json")
    ended = main("inspect", "point.json")
    assert ended.code == 0 and ended.err == ""
    for part in (
        f"width {file.width:g}, λ {file.lam:g}, fp32", f"{file.artifact} of run {file.run}",
        f"checkpoint sha256 {file.checkpoint_sha256}", "min_robust 0.2",
        f"RA {100 * file.figures.robust_accuracy_counted:.1f} %",
        f"on {file.device}, 1 image per request",
    ):  # fmt: skip
        assert part in ended.out, ended.out
    ended = main("inspect", "bundles/latest/report.json")
    assert ended.code == 2 and "has schema 'oat-edge/bench/1': expected a bundle" in ended.err
    Path("point.json").write_text(Path("point.json").read_text().replace("0.2", "0.3"))
    ended = main("inspect", "point.json")
    assert ended.code == 2 and "is damaged" in ended.err


def test_what_was_read_is_not_written_over(here, main):
    report = Path("bundles/latest/report.json")
    before = report.read_bytes()
    for options in (
        ["--out", report],
        ["--json", "bundles/tiny-run/report.json"],
        ["--out", "same.json", "--json", "same.json"],
    ):
        ended = main("calibrate", *options)
        assert ended.code == 2 and "read here, or written already" in ended.err, ended
    assert report.read_bytes() == before and not Path("same.json").exists()


@pytest.mark.parametrize("name", ["bundles/latest/" + WIDE, "notes.txt", "other.json"])
def test_a_file_that_is_no_operating_point_is_not_taken_the_place_of(name, here, main):
    file = Path(name)
    if not file.exists():
        file.write_text('{"schema": "mine"}' if file.suffix == ".json" else "mine")
    before = file.read_bytes()
    ended = main("calibrate", "--no-search", "--out", name)
    assert ended.code == 2 and "is no operating point" in ended.err and name in ended.err
    assert file.read_bytes() == before
    # An earlier choice is replaced, even one that is damaged.
    for _ in range(2):
        assert main("calibrate", "--no-search", "--out", "point.json").code == 0
        Path("point.json").write_text(Path("point.json").read_text().replace("fp32", "fp16"))


def test_inspect_says_whether_the_chosen_file_is_still_the_same(here, main):
    assert main("calibrate", "--no-search").code == 0
    chosen, file = Path("bundles/latest") / WIDE, "bundles/latest/operating_point.json"
    ended = main("inspect", file)
    assert ended.code == 0 and f"{WIDE} beside it is the file that was chosen" in ended.out
    chosen.write_bytes(chosen.read_bytes()[:-1])
    ended = main("inspect", file)
    assert ended.code == 2 and f"{WIDE} is not the file that was chosen" in ended.err
    chosen.unlink()
    ended = main("inspect", file)
    assert ended.code == 0 and f"{WIDE} is not beside this file" in ended.out


def test_a_file_that_is_another_one_since_the_bench_is_said(here, main):
    ended = main("calibrate", "--no-search")
    assert ended.code == 0 and "will refuse" not in ended.out
    other = change(report_of(here), lambda row: row.artifact == WIDE, sha256="e" * 64)
    save(other, Path("bundles/latest/report.json"))
    ended = main("calibrate", "--no-search")
    assert ended.code == 0 and "warning: open_runner will refuse this: " in ended.out
    with pytest.raises(InputError, match="is not the file that was measured"):
        open_runner("bundles/latest", operating_point="bundles/latest/operating_point.json")
