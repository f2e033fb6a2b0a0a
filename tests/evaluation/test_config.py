from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.errors import InputError
from oat_edge.evaluation.config import (
    ATTACKS,
    BUNDLE_ATTACKS,
    GRAPH_ATTACK,
    EvalConfig,
    check_eps,
    check_levels,
    check_run_attacks,
    level_warnings,
    mode,
    parse_attacks,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", None),
        (" all ", None),
        ("pgd", ("pgd20",)),
        ("pgd20", ("pgd20",)),
        ("square,pgd", ("pgd20", "square")),
        (" apgd , autoattack ", ("apgd", "autoattack")),
        ("pgd,pgd20,pgd", ("pgd20",)),
        ("square,all", None),
        (",".join(ATTACKS), ATTACKS),
    ],
)
def test_lists_of_attacks_are_read(text, expected):
    assert parse_attacks(text) == expected


@given(st.lists(st.sampled_from([*ATTACKS, "pgd"]), min_size=1))
def test_any_order_and_any_repeats_mean_the_same(names):
    parsed = parse_attacks(",".join(names))
    assert set(parsed) == {"pgd20" if name == "pgd" else name for name in names}
    assert list(parsed) == sorted(parsed, key=ATTACKS.index)
    assert EvalConfig(attacks=parsed).attacks == parsed


@pytest.mark.parametrize(
    ("text", "hint"),
    [("autoatack", "autoattack"), ("squar", "square"), ("apdg", "apgd"), ("pgd2", "pgd20")],
)
def test_a_slip_is_answered_with_what_was_meant(text, hint):
    with pytest.raises(InputError, match=rf"attack is '{text}': .*did you mean '{hint}'\?"):
        parse_attacks(f"square,{text}")


@pytest.mark.parametrize(
    "text",
    ["", ",", "pgd,", "fab", "EVERY", "auto attack", "all,foo", "foo,all", "all,", "all pgd"],
)
def test_what_is_no_attack_is_refused_with_the_list(text):
    with pytest.raises(
        InputError, match="expected a list of pgd20, pgd20-int8, apgd, autoattack, square"
    ):
        parse_attacks(text)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"attacks": ()}, "attacks are empty"),
        ({"attacks": ("pgd",)}, "attack is 'pgd'"),
        ({"num_samples": 0}, "samples is 0: expected 1 or more"),
        ({"num_samples": -5}, "samples is -5"),
        ({"eps": 0.0}, "eps is 0: expected a number in"),
        ({"eps": -0.1}, "eps is -0.1"),
        ({"eps": 8.0}, r"did you mean 8/255\?"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"eps": float("inf")}, r"eps is inf: expected a number in \(0, 1\]$"),
        ({"num_queries": 0}, "queries is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
    ],
)
def test_a_config_that_cannot_be_met_is_refused(changes, pattern):
    with pytest.raises(InputError, match=pattern):
        EvalConfig(**changes)


def test_the_hint_is_for_levels_only():
    for eps, hint in ((255.0, True), (1.5, True), (256.0, False), (-8.0, False)):
        with pytest.raises(InputError) as caught:
            check_eps(eps)
        assert ("did you mean" in str(caught.value)) == hint
    check_eps(1.0)


def test_a_radius_under_one_level_is_refused_where_square_has_to_move():
    for eps in (1 / 255, 0.5, 1.0):
        check_levels(eps)
    with pytest.raises(InputError, match="under one 8-bit level"):
        check_levels(0.9 / 255)


def test_a_config_is_plain_json():
    config = EvalConfig(attacks=("square",), eps=8 / 255, seed=2**63 - 1)
    value = json.loads(json.dumps(config.to_json()))
    assert value["eps"] == 8 / 255 and value["seed"] == 2**63 - 1 and value["num_samples"] is None


def test_the_case_of_names_does_not_matter():
    assert parse_attacks("AutoAttack,PGD") == ("pgd20", "autoattack")


def test_nothing_named_is_not_the_same_as_everything_named():
    assert EvalConfig().attacks is None and EvalConfig().to_json()["attacks"] is None
    assert EvalConfig(attacks=ATTACKS).attacks == ATTACKS


SETS = st.lists(st.sampled_from(ATTACKS), min_size=1, unique=True).map(
    lambda names: tuple(sorted(names, key=ATTACKS.index))
)


@given(attacks=SETS, replayed=st.booleans())
def test_only_autoattack_is_not_called_fast_and_packs_are_called_packs(attacks, replayed):
    text = mode(attacks, replayed=replayed)
    assert text.startswith("fast mode ") == ("autoattack" not in attacks)
    assert text.endswith("without AutoAttack, which may well find less robustness") == (
        "autoattack" not in attacks
    )
    # Only engines are replayed on, and only white-box attacks come from packs.
    packs = replayed and attacks != ("square",)
    assert ("packs (8-bit, crafted on the network), replayed" in text) == packs
    if "autoattack" not in attacks:
        named = {name for name in ATTACKS[:2] + ATTACKS[3:] if name in text}
        assert named == set(attacks)


def test_the_mode_word_by_word():
    weak = "without AutoAttack, which may well find less robustness"
    packs = "packs (8-bit, crafted on the network), replayed"
    assert mode(ATTACKS) == mode(("autoattack",)) == "AutoAttack standard"
    assert mode(ATTACKS, replayed=True) == f"PGD-20 and AutoAttack {packs}"
    assert mode(("pgd20", "square")) == f"fast mode (pgd20; square): {weak}"
    assert mode(("pgd20", "square"), replayed=True) == f"fast mode (pgd20 {packs}; square): {weak}"
    assert mode(("square",)) == mode(("square",), replayed=True) == f"fast mode (square): {weak}"


def test_square_is_told_where_its_levels_do_not_fill_the_radius():
    (text,) = level_warnings(8.5 / 255, ATTACKS)
    assert text.startswith("square: ε is 8.5/255") and "within 8/255" in text
    assert level_warnings(8.5 / 255, ("pgd20", "apgd", "autoattack")) == ()


@given(level=st.integers(1, 255), part=st.floats(0.001, 0.999))
def test_whole_levels_are_not_warned_about_and_parts_of_one_are(level, part):
    assert level_warnings(level / 255, ("square",)) == ()
    (text,) = level_warnings((level - 1 + part) / 255, ("square",))
    assert f"within {level - 1}/255" in text


def test_the_attack_on_int8_is_for_bundles_alone():
    assert parse_attacks("square,pgd20-int8,pgd") == ("pgd20", "pgd20-int8", "square")
    assert EvalConfig(attacks=("pgd20-int8",)).attacks == ("pgd20-int8",)
    with pytest.raises(InputError, match="made on an int8 file: evaluate the bundle, for a run"):
        check_run_attacks(("pgd20", "pgd20-int8"))
    check_run_attacks(None)
    check_run_attacks(ATTACKS)
    assert set(ATTACKS) == set(BUNDLE_ATTACKS) - {GRAPH_ATTACK}


def test_the_mode_says_that_the_attack_on_int8_was_made_on_the_file():
    text = mode(("pgd20", "pgd20-int8"), replayed=True)
    assert "packs (8-bit, crafted on the network and on the int8 file), replayed" in text
