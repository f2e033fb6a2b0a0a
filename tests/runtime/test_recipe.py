from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.errors import InputError
from oat_edge.runtime.recipe import LIBRARIES, MAX_BATCH, PRECISIONS, Recipe

recipes = st.builds(
    Recipe,
    format=st.sampled_from(list(LIBRARIES)),
    precision=st.sampled_from(PRECISIONS),
    batches=st.lists(st.integers(1, MAX_BATCH), min_size=3, max_size=3).map(sorted).map(tuple),
    opt_level=st.none() | st.integers(0, 5),
    workspace_mb=st.none() | st.integers(1, 1 << 20),
    version_compatible=st.booleans(),
    refit=st.booleans(),
)


@given(recipes)
def test_a_recipe_travels_through_json_unchanged(recipe):
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "onnx"}, "format is 'onnx': expected trt, trt-rtx"),
        ({"precision": "fp64"}, "precision is 'fp64': expected fp32, fp16, int8"),
        ({"batches": (0, 1, 2)}, "batch is '0,1,2': expected the fewest, usual and most"),
        ({"batches": (1, 9, 8)}, "batch is '1,9,8'"),
        ({"batches": (1, 8)}, "batch is '1,8'"),
        ({"batches": (1, 8, MAX_BATCH + 1)}, f"at most {MAX_BATCH}"),
        ({"opt_level": 6}, "opt_level is 6: expected 0 to 5"),
        ({"opt_level": -1}, "opt_level is -1: expected 0 to 5"),
        ({"workspace_mb": 0}, "workspace_mb is 0: expected 1 or more"),
        ({"workspace_mb": 64.5}, "workspace_mb is 64.5: expected a whole number"),
        ({"batches": (1.5, 8.0, 32.0)}, "batch is 1.5: expected a whole number"),
        ({"opt_level": True}, "opt_level is True: expected a whole number"),
        ({"version_compatible": "no"}, "version_compatible is 'no': expected true or false"),
        ({"refit": 1}, "refit is 1: expected true or false"),
    ],
)
def test_what_no_builder_takes_is_refused(change, message):
    with pytest.raises(InputError) as caught:
        dataclasses.replace(Recipe(), **change)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [], {"format": "trt", "speed": 3}, {"batches": 5}])
def test_a_damaged_recipe_is_one_line(value):
    with pytest.raises(InputError, match="recipe"):
        Recipe.from_json(value)
