from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.config import TrainConfig
from oat_edge.errors import InputError
from oat_edge.reproduce.settings import parse_settings
from oat_edge.train.recipes import NAMED, RECIPES, recipe


def as_text(value):
    if isinstance(value, tuple):
        return ",".join(map(repr, value))
    return str(value)


@pytest.mark.parametrize("name", NAMED)
def test_every_setting_of_every_recipe_can_be_written_as_text(name):
    for data in RECIPES:
        if NAMED[name].data not in (None, data):
            continue
        config = recipe(data, name)
        values = {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}
        texts = [f"{key}={as_text(value)}" for key, value in values.items()]
        assert TrainConfig(**parse_settings(texts)) == config


@given(st.integers(1, 10**6), st.integers(1, 254), st.booleans())
def test_values_have_the_type_of_their_field(epochs, levels, flip):
    settings = parse_settings(
        [f"epochs={epochs}", f"eps = {levels}/255", f"flip={flip}", "clean-share=none"]
    )
    assert settings == {
        "epochs": epochs,
        "eps": levels / 255,
        "flip": flip,
        "clean_share": None,
    }
    assert type(settings["epochs"]) is int


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("epochs", "expected NAME=VALUE"),
        ("epochs=", "expected NAME=VALUE"),
        ("epoch=3", "'epoch' is no setting of training"),
        ("epochs=2.5", "expected a whole number"),
        ("epochs=none", "epochs is 'none'"),
        ("flip=1", "expected true or false"),
        ("lr=nan", "finite"),
    ],
)
def test_what_cannot_be_read_is_refused(text, part):
    with pytest.raises(InputError, match=part):
        parse_settings([text])
