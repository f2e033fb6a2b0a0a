from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.config import TrainConfig
from oat_edge.errors import InputError
from oat_edge.network_spec import NetworkSpec
from oat_edge.train.recipes import RECIPES, recipe

SPEC = {"arch": "resnet8", "class_names": ("a", "b"), "image_shape": (1, 8, 8), "eps": 0.1}
TRAIN = {"data": "digits", "arch": "resnet8"}
NAN, INF = float("nan"), float("inf")

unit = st.floats(0, 1, width=32)
grids = st.lists(st.integers(1, 99).map(lambda n: n / 100), unique=True, max_size=6).map(sorted)
specs = st.builds(
    NetworkSpec,
    arch=st.text(),
    widths=grids.map(lambda values: (*values, 1.0)),
    lambdas=grids.map(lambda values: (0.0, *values, 1.0)),
    class_names=st.lists(st.text(), min_size=2, max_size=5).map(tuple),
    image_shape=st.tuples(*[st.integers(1, 512)] * 3),
    eps=unit,
    encoding=st.sampled_from(("random", "dct", "onehot", "none")),
    encoding_dim=st.integers(8, 256),
    heads=st.sampled_from(("shared", "per-width")),
) | st.builds(
    lambda conditioning: NetworkSpec(**SPEC, conditioning=conditioning),
    st.sampled_from(("film", "table", "single-bn")),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=5), inside),
    max_leaves=8,
)


@given(specs)
def test_a_spec_comes_back_from_json_as_it_was(spec):
    assert NetworkSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_says_what_it_always_has_and_more_only_where_it_differs():
    """The bytes of a bundle's files, and so their hashes, do not change with a new version."""
    first = {"arch", "widths", "lambdas", "class_names", "image_shape", "eps", "encoding",
             "encoding_dim"}  # fmt: skip
    assert NetworkSpec(**SPEC).to_json().keys() == first
    other = NetworkSpec(**SPEC, heads="per-width", conditioning="table").to_json()
    assert other.keys() == {*first, "heads", "conditioning"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_json_as_it_was(name):
    config = recipe(name)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.data == name


@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(NetworkSpec)]),
                       json_values), json_values)  # fmt: skip
def test_any_json_is_a_spec_or_an_input_error(changes, other):
    for value in ({**SPEC, **changes}, changes, other):
        try:
            NetworkSpec.from_json(value)
        except InputError as error:
            assert "spec" in str(error) or any(name in str(error) for name in changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"lambdas": [10**400]},  # no float holds it
        {"lambdas": ["0", "x"]},
        {"lambdas": None},
        {"widths": ["0.5"]},
        {"eps": "0.1"},
        {"class_names": 3},
        {"unknown": 1},
    ],
)
def test_json_of_wrong_types_is_an_input_error(changes):
    with pytest.raises(InputError):
        NetworkSpec.from_json({**SPEC, **changes})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("widths", ()),
        ("widths", (0.5,)),
        ("widths", (0.0, 1.0)),
        ("widths", (0.75, 0.5, 1.0)),
        ("widths", (0.5, 0.5, 1.0)),
        ("widths", (NAN, 1.0)),
        ("widths", (0.5, 1.0, 1.5)),
        ("lambdas", (0.2, 1.0)),
        ("eps", -0.01),
        ("eps", 8.0),
        ("eps", NAN),
        ("class_names", ("one",)),
        ("image_shape", (1, 8)),
        ("image_shape", (1, 0, 8)),
        ("encoding", "fourier"),
        ("encoding_dim", 5),
        ("heads", "two"),
        ("conditioning", "fourier"),
    ],
)
def test_a_spec_that_cannot_be_built_is_refused_by_the_name_of_its_field(name, value):
    with pytest.raises(InputError, match=name):
        NetworkSpec(**{**SPEC, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("widths", (0.5,)),
        ("lambdas", (0.5, 1.0)),
        ("eps", 8.0),
        ("eps", INF),
        ("epochs", 0),
        ("batch_size", 0),
        ("attack_steps", 0),
        ("val_every", 0),
        ("val_attack_samples", -1),
        ("train_samples", 0),
        ("lr", 0.0),
        ("lr", NAN),
        ("lr", INF),
        ("momentum", 1.5),
        ("weight_decay", -1e-4),
        ("crop", -1),
        ("clean_share", 0.0),
        ("clean_share", 1.0),
        ("clean_share", NAN),
        ("clean_images", "some"),
        ("seed", -1),
        ("seed", 2**63),
        ("encoding", "fourier"),
        ("heads", "two"),
        ("conditioning", "fourier"),
        ("lambda_sampling", "sobol"),
        ("loss", "mse"),
        ("attack", "fgsm"),
        ("share_attack", "all"),
        ("trades_beta", -1.0),
        ("label_smoothing", 1.0),
        ("sandwich", -1),
        ("sandwich", 2),  # there is one width between 0.5 and 1
        ("awp_gamma", NAN),
        ("ema", 1.0),
        ("swa_start", 1.0),
        ("patience", -1),
    ],
)
def test_training_that_cannot_run_is_refused_by_the_name_of_its_field(name, value):
    with pytest.raises(InputError, match=name):
        TrainConfig(**{**TRAIN, name: value})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"conditioning": "table", "lambdas": (1.0,)}, "only λ is 1"),
        ({"conditioning": "single-bn", "encoding": "dct"}, "only 'film' encodes λ"),
        ({"clean_images": "all", "lambdas": (1.0,)}, "a batch norm of λ = 0 beside one of λ > 0"),
        ({"clean_images": "all", "conditioning": "single-bn"}, "conditioning 'single-bn'"),
        ({"lambda_sampling": "continuous", "lambdas": (1.0,)}, "two or more above 0"),
        ({"lambda_sampling": "continuous", "lambdas": (0.0, 1.0)}, "two or more above 0"),
    ],
)
def test_settings_that_exclude_each_other_are_refused_in_one_line(changes, says):
    with pytest.raises(InputError, match=says) as caught:
        TrainConfig(**TRAIN, **changes)
    assert "\n" not in str(caught.value)


def test_a_single_branch_has_something_between_zero_and_one():
    config = {**TRAIN, "lambdas": (0.0, 1.0), "lambda_sampling": "continuous"}
    assert TrainConfig(**config, conditioning="single-bn").lowest_continuous == 0
    config["lambdas"] = (0.0, 0.5, 1.0)
    assert TrainConfig(**config).lowest_continuous == 1
    assert TrainConfig(**TRAIN).lowest_continuous is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ema": 0.9, "swa_start": 0.5}, "choose one"),
        ({"distill": True, "widths": (1.0,)}, "no teacher"),
        ({"sandwich": 1, "widths": (0.5, 1.0)}, "expected three or more"),
        ({"sandwich": 0}, "expected 1, as widths"),
        ({"trades_beta": 2.0}, "no other has a β"),
        ({"share_attack": "widest", "widths": (1.0,)}, "none to share with"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes, reason):
    with pytest.raises(InputError, match=reason):
        TrainConfig(**TRAIN, **changes)


def test_configs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NetworkSpec(**SPEC).eps = 0.2
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig(**TRAIN).lr = 0.2
