"""The script that compares options of training: its rows are settings, its table their means."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from benchmarks import common, train_options
from benchmarks.train_options import OPTIONS, PLAIN, score, table
from oat_edge.train.recipes import RECIPES


@pytest.mark.parametrize("data", RECIPES)
def test_every_row_is_a_setting_of_every_recipe(data: str) -> None:
    configs = [dataclasses.replace(RECIPES[data](), **changes) for changes in OPTIONS.values()]
    assert next(iter(OPTIONS)) == PLAIN
    assert configs[0] == RECIPES[data]()
    assert len({json.dumps(config.to_json()) for config in configs}) == len(OPTIONS)


def test_the_table_is_of_means_over_widths_and_seeds() -> None:
    def grid(sa: float, ra: float) -> list[dict[str, float]]:
        return [
            {"width": width, "lambda": lam, "sa": sa + offset, "ra": ra}
            for width, offset in ((0.5, -0.1), (1.0, 0.1))
            for lam in (0.0, 1.0)
        ]

    assert score(grid(0.8, 0.4)) == pytest.approx((0.8 + 0.4) / 2)
    found = {PLAIN: [grid(0.8, 0.4), grid(0.6, 0.4)], "other": [grid(0.5, 0.25)]}
    header, _, plain, other = table(found, {"other": {"ratio": 1.5}})
    assert header == "| | step | λ=0 | λ=1 | score |"
    assert plain.split(" | ")[1:3] == ["1", "70.0 ± 14.1 / 40.0 ± 0.0"]
    assert other == "| other | 1.50 | 50.0 / 25.0 | 50.0 / 25.0 | 37.5 |"


@pytest.mark.slow
def test_it_trains_evaluates_and_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    runs = tmp_path / "runs"
    given = {"epochs": 1, "train-samples": 120, "images": 20, "rounds": 2, "runs": runs}
    arguments = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["train_options", *arguments, "--only", "plain; swa 0.75"])
    train_options.main()
    saved = json.loads((tmp_path / "train-options-digits.json").read_text())
    assert [len(grid) for grid in saved["grids"]["swa 0.75"]] == [18]
    assert saved["cost"]["swa 0.75"]["num_rounds"] == 2
    checkpoint = (runs / "plain-0" / "checkpoint.safetensors").stat().st_mtime_ns
    train_options.main()  # what is there is not trained again
    assert (runs / "plain-0" / "checkpoint.safetensors").stat().st_mtime_ns == checkpoint
