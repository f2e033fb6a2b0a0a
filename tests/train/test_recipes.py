from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from oat_edge.attacks.pgd import training_step_size
from oat_edge.data import DATASETS
from oat_edge.errors import InputError
from oat_edge.nn.zoo import architecture
from oat_edge.train.recipes import (
    MEASURED,
    NAMED,
    PLAIN_IS_AS_GOOD,
    RECIPES,
    Recipe,
    measured,
    recipe,
    with_settings,
)

GENERAL = [name for name, one in NAMED.items() if one.data is None]
OF_ONE = [name for name, one in NAMED.items() if one.data is not None]


def test_every_named_data_set_has_a_recipe_that_can_be_built() -> None:
    assert set(RECIPES) == set(DATASETS)
    for name in DATASETS:
        config = recipe(name)
        assert config.data == name
        architecture(config.arch).build(1, 10)


def test_own_data_gets_a_start() -> None:
    assert recipe("pictures/of/things").data == "pictures/of/things"


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("data", [*RECIPES, "pictures/of/things"])
def test_a_general_recipe_fits_any_data(name: str, data: str) -> None:
    assert recipe(data, name).data == data


@pytest.mark.parametrize("name", OF_ONE)
def test_a_recipe_for_one_data_set_names_it_and_refuses_others(name: str) -> None:
    own = NAMED[name].data
    assert recipe(None, name) == recipe(own, name)
    assert recipe(None, name).data == own
    with pytest.raises(InputError, match=f"'{name}' is for {own}, got data 'digits'.*default"):
        recipe("digits", name)


def test_without_a_name_or_data_it_is_the_default_for_digits() -> None:
    assert recipe() == recipe("digits") == recipe("digits", "default")


@pytest.mark.parametrize("data", [*RECIPES, "pictures/of/things"])
def test_the_default_adds_three_settings_to_the_plain_recipe(data: str) -> None:
    plain, default = recipe(data, "plain"), recipe(data)
    assert (plain == default) == (data in PLAIN_IS_AS_GOOD)
    assert dataclasses.replace(default, heads="shared", ema=0.0, clean_images="share") == plain


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ({"swa_start": 0.0}, {"ema": 0.0}),
        ({"lambdas": (1.0,)}, {"clean_images": "share"}),
        ({"conditioning": "single-bn"}, {"clean_images": "share"}),
        ({"lr": 0.5, "lambdas": (0.0, 1.0)}, {}),
    ],
)
def test_a_recipe_makes_way_for_what_the_user_chose(
    given: dict[str, object], gone: dict[str, object]
) -> None:
    default = recipe("fashion-mnist")
    config = with_settings(default, given)
    assert config == dataclasses.replace(default, **given, **gone)  # type: ignore[arg-type]
    for name in gone:
        with pytest.raises(InputError):
            with_settings(default, {**given, name: getattr(default, name)})


def test_an_unknown_recipe_lists_what_there_is() -> None:
    with pytest.raises(InputError, match=r"'fats': expected default, .*did you mean 'fast'"):
        recipe("digits", "fats")


@pytest.mark.parametrize("data", RECIPES)
def test_the_paper_trains_with_seven_steps_of_its_own_size_where_it_can(data: str) -> None:
    config = recipe(data, "plain")
    assert config.attack_steps == 7
    assert (config.attack_alpha is None) == (data != "digits")


@pytest.mark.parametrize("data", RECIPES)
def test_fast_costs_less_and_still_crosses_the_ball(data: str) -> None:
    config = recipe(data, "fast")
    assert config.attack_steps < recipe(data).attack_steps
    assert config.attack_alpha is None  # it follows ε, also another one that is given
    assert training_step_size(config.eps, config.attack_steps) * config.attack_steps >= config.eps


def test_figures_belong_to_settings_not_to_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that sets the same has the same figures; one that changes loses them."""
    for name, data in MEASURED:
        assert measured(name, data) == MEASURED[name, data]
    same = Recipe(description="", config=lambda data: recipe(data, "plain"))
    other = Recipe(
        description="", config=lambda data: dataclasses.replace(recipe(data, "plain"), seed=7)
    )
    monkeypatch.setitem(NAMED, "same", same)
    monkeypatch.setitem(NAMED, "other", other)
    assert measured("same", "digits") == MEASURED["plain", "digits"]
    assert measured("other", "digits") is None


@pytest.mark.parametrize("module", ["oat_edge.train.recipes", "oat_edge.config"])
def test_recipes_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
