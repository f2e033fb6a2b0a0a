from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from oat_edge.cli.recipes import _print
from oat_edge.config import TrainConfig
from oat_edge.train.recipes import MEASURED, NAMED, RECIPES, recipe
from oat_edge.train.state import TRAIN_STATE, load_state
from tests.cli.test_errors import check_refused

TINY = ("--train-samples", 60, "--epochs", 1, "--batch-size", 24, "--widths", "1.0")


def test_every_recipe_is_listed_on_lines_that_fit_a_terminal(main):
    ended = main("recipes")
    assert ended.code == 0 and ended.err == ""
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= 100
    for name in NAMED:
        assert any(line.startswith(name) for line in lines)
    for data in RECIPES:
        assert data in ended.out
    for figures in MEASURED.values():
        assert figures.source in " ".join(lines)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_cell_is_cut_off_on_a_terminal(width):
    screen = io.StringIO()
    _print(Console(file=screen, width=width, force_terminal=True, color_system=None))
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert max(map(len, lines)) <= width and "…" not in screen.getvalue()
    figures = MEASURED["plain", "digits"]
    shares = f"{100 * figures.standard_accuracy:.1f} / {100 * figures.robust_accuracy:.1f}"
    assert any(line.endswith(shares) for line in lines)


def test_json_holds_settings_that_train_again(main):
    ended = main("recipes", "--json", "-")
    entries = json.loads(ended.out)["recipes"]
    assert {entry["recipe"] for entry in entries} == set(NAMED)
    for entry in entries:
        config = TrainConfig.from_json(entry["settings"])
        assert config == recipe(entry["data"], entry["recipe"])
        known = (entry["recipe"], entry["data"]) in MEASURED
        assert not known or entry["measured"]["minutes"] > 0


def test_options_override_the_recipe(main, tmp_path):
    ended = main("train", "--recipe", "fast", "--lr", 0.03, *TINY, "--out", tmp_path / "run")
    assert ended.code == 0, ended
    _, config, _ = load_state(tmp_path / "run" / TRAIN_STATE)
    assert config.attack_steps == recipe("digits", "fast").attack_steps
    assert (config.lr, config.epochs) == (0.03, 1)
    ended = main("train", "--resume", "--recipe", "fast", "--out", tmp_path / "run")
    check_refused(ended, 2, "leave --recipe fast out")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("--recipe nosuch", "recipe is 'nosuch'"),
        ("--recipe paper-svhn --data digits", "recipe 'paper-svhn' is for svhn"),
    ],
)
def test_train_refuses_a_recipe_that_does_not_fit(arguments, part, main):
    check_refused(main("train", *arguments.split()), 2, part)
