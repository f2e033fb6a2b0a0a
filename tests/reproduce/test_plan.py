"""What is trained, and that like is compared with like."""

from __future__ import annotations

import dataclasses

import pytest

from oat_edge.errors import InputError
from oat_edge.nn.zoo import architecture
from oat_edge.operating_point import OperatingPoint, grid
from oat_edge.reproduce.plan import (
    BUDGETS,
    OF_SEVERAL_KNOTS,
    OF_SEVERAL_WIDTHS,
    ReproduceConfig,
    chosen,
    plan,
)
from oat_edge.train.recipes import RECIPES, recipe
from tests.reproduce.made_up import models_of

ALL = {"oat_per_width": True, "compare_recipe": "fast", "num_seeds": 2}


@pytest.mark.parametrize("data", RECIPES)
@pytest.mark.parametrize("budget", BUDGETS)
def test_every_budget_gives_networks_that_can_be_trained(data, budget):
    config = ReproduceConfig(data=data, budget=budget, oat_per_width=True)
    for model in plan(config, num_train=50_000):
        architecture(model.config.arch)
        assert model.config.epochs <= recipe(data).epochs
    assert config.evaluation().transfer is False


def test_networks_differ_in_widths_lambdas_and_seed_and_nothing_else():
    _, models = models_of(**ALL)
    oats = models[0].config
    assert models[0].kind == "oats" and oats.lambdas == recipe("digits").lambdas
    for model in models:
        if model.kind == "compared":
            continue
        differs = {
            field.name
            for field in dataclasses.fields(oats)
            if getattr(model.config, field.name) != getattr(oats, field.name)
        }
        allowed = {"seed"}
        if model.kind == "dedicated":
            allowed |= {"widths", "lambdas", *OF_SEVERAL_KNOTS, *OF_SEVERAL_WIDTHS}
        if model.kind == "oat":
            allowed |= {"widths", "arch", *OF_SEVERAL_WIDTHS}
        assert differs <= allowed, model.name


def test_dedicated_networks_have_one_width_and_one_lambda_each():
    _, models = models_of(dedicated=())
    dedicated = [model for model in models if model.kind == "dedicated"]
    assert [model.config.lambdas for model in dedicated] == [(k,) for k in recipe("digits").lambdas]
    for model in dedicated:
        point = OperatingPoint(1.0, *model.config.lambdas)
        assert model.points == {point: point}
        assert model.config.clean_share is None


def test_what_needs_several_lambdas_is_left_out_of_dedicated_networks():
    _, models = models_of(dedicated=(), settings={"clean_images": "all"})
    images = {model.kind: model.config.clean_images for model in models}
    assert images == {"oats": "all", "dedicated": "share"}


def test_an_oat_network_stands_for_its_width():
    _, models = models_of(oat_per_width=True)
    oats = models[0]
    own = [model for model in models if model.kind == "oat"]
    assert [point for model in own for point in model.points] == list(oats.points)
    for model in own:
        assert {point.width for point in model.points.values()} == {1.0}
        assert model.config.arch == ("resnet8" if model.width == 1 else f"resnet8-x{model.width}")


def test_names_tell_networks_apart_and_seeds_are_in_turn():
    _, models = models_of(**ALL, settings={"seed": 5})
    assert len({model.name for model in models}) == len(models)
    assert [model.config.seed for model in models] == sorted(model.config.seed for model in models)
    assert {model.config.seed for model in models} == {5, 6}
    for seed in (5, 6):
        groups = [model.group for model in models if model.config.seed == seed]
        assert groups == list(dict.fromkeys(model.group for model in models))


def test_options_override_recipe_and_budget_for_every_network():
    given = {"epochs": 2, "arch": "wrn-10-1", "train_samples": 77, "eps": 0.1, "lr": 0.01}
    _, models = models_of(**ALL, settings=given)
    for model in models:
        values = {name: getattr(model.config, name) for name in given}
        arch = values.pop("arch")
        assert arch.startswith("wrn-10-1")
        assert values == {name: value for name, value in given.items() if name != "arch"}


def test_a_budget_takes_no_more_images_than_there_are():
    config = ReproduceConfig(data="digits", budget="smoke")
    assert plan(config, num_train=10_000)[0].config.train_samples == 300
    assert plan(config, num_train=200)[0].config.train_samples is None


def test_recipes_are_compared_on_the_same_points():
    _, models = models_of(compare_recipe="fast", settings={"lambdas": (0.0, 0.5, 1.0)})
    first, second = models[:2]
    assert (second.kind, second.group) == ("compared", "oats-fast")
    assert first.points == second.points
    assert second.config.attack_steps == 2 != first.config.attack_steps


def test_only_chosen_widths_are_attacked():
    _, models = models_of(eval_widths=(0.5, 1.0))
    assert list(models[0].points) == grid((0.5, 1.0), recipe("digits").lambdas)
    assert models[0].config.widths == recipe("digits").widths


def test_only_takes_names_and_stars_in_the_order_of_the_plan():
    _, models = models_of()
    names = [model.name for model in chosen(models, ("dedicated-*", "oats-seed0"))]
    assert names == [model.name for model in models]
    assert [m.name for m in chosen(models, ("dedicated-lambda0.3-*",))] == [
        "dedicated-lambda0.3-seed0"
    ]
    with pytest.raises(InputError, match=r"no model is called 'oats': .* oats-seed0"):
        chosen(models, ("oats",))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"budget": "huge"}, "budget is 'huge'"),
        ({"num_seeds": 0}, "seeds is 0"),
        ({"compare_recipe": "default"}, "compare_recipe is 'default'"),
        ({"compare_recipe": "paper-svhn"}, "is for svhn"),
        ({"dedicated": (0.25,)}, "dedicated λ is 0.25"),
        ({"eval_widths": (0.3, 1.0)}, "eval width is 0.3"),
        ({"eval_widths": (0.5,)}, "have width 1"),
        ({"attacks": ("pgd20-int8",)}, "pgd20-int8"),
        ({"num_attacked": 0}, "samples is 0"),
        ({"settings": {"data": "svhn"}}, "'data' is no setting"),
        ({"settings": {"epochs": 0}}, "epochs is 0"),
    ],
)
def test_what_cannot_be_is_refused(changes, part):
    with pytest.raises(InputError, match=part):
        models_of(**changes)
