"""What an evaluation takes of a bundle, leaves out and says of it, or refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from oat_edge.errors import InputError
from oat_edge.evaluation.config import ATTACKS
from tests.bench.conftest import KNOTS, make_pack
from tests.evaluation.bundles import (
    evaluate,
    figures,
    packs_of,
    with_pack,
)


def test_all_takes_what_every_width_has_and_says_what_it_left_out(bundle):
    report = evaluate(bundle).report
    assert all(
        list(row.robust_accuracy) == ["pgd20", "square", "transfer", "worst"]
        for row in report.rows
    )  # fmt: skip
    first, second = report.warnings
    assert first == "apgd: left out, its packs are for 0.5@0, 0.5@0.3, 0.5@1 alone"
    assert second.startswith("autoattack: left out, the bundle has no pack")
    assert second.endswith("(oat-edge export --attack autoattack)")
    assert report.settings["mode"] == (
        "fast mode (pgd20 packs (8-bit, crafted on the network), replayed; square): "
        "without AutoAttack, which may well find less robustness"
    )
    half = evaluate(bundle, widths=(0.5,)).report
    assert half.warnings == (second,)
    assert set(half.settings["attacks"]) == {"pgd20", "apgd", "square"}
    assert {"pgd20", "apgd", "square"} < set(half.rows[0].robust_accuracy)


def test_all_at_a_lambda_of_no_pack_is_square_alone_and_says_so(bundle):
    report = evaluate(bundle, lambdas=(0.5,), num_queries=5).report
    assert set(report.settings["attacks"]) == {"square"} and report.transfer == ()
    assert [text.partition(":")[0] for text in report.warnings] == list(ATTACKS[:3])
    assert all("left out" in text for text in report.warnings)
    assert sum("its packs are for" in text for text in report.warnings) == 2


def test_a_lambda_that_one_pack_lacks_leaves_out_that_attack_only(bundle):
    pack = make_pack(1.0, "apgd")
    short = dataclasses.replace(pack, lambdas=KNOTS[:2], adversarial=pack.adversarial[:2])
    other = with_pack(bundle, short)
    report = evaluate(other, num_queries=5).report
    assert set(report.settings["attacks"]) == {"pgd20", "square"}
    assert report.warnings[0].startswith("apgd: left out, its packs are for 0.5@0,")
    report = evaluate(other, lambdas=KNOTS[:2], num_queries=5).report
    assert set(report.settings["attacks"]) == {"pgd20", "apgd", "square"}
    with pytest.raises(InputError, match=r"no apgd pack is for width 1 at λ=1 .*has λ 0, 0.3\)"):
        evaluate(other, attacks=("apgd",))


def test_all_four_by_name_need_all_packs_and_all_does_not(bundle):
    """The same attacks, and yet not the same: a name is an order."""
    with pytest.raises(InputError, match=r"no apgd pack is for width 1 at λ=0 .*has none"):
        evaluate(bundle, attacks=ATTACKS)
    with pytest.raises(InputError, match=r"has no autoattack pack \(it has pgd20, apgd\)"):
        evaluate(bundle, attacks=ATTACKS, widths=(0.5,))
    assert not (bundle.path / "eval").exists()
    whole = bundle
    for width, attack in ((1.0, "apgd"), (0.5, "autoattack"), (1.0, "autoattack")):
        whole = with_pack(whole, make_pack(width, attack))
    named, default = (evaluate(whole, attacks=one, num_queries=5) for one in (ATTACKS, None))
    assert figures(named) == figures(default) and named.report.warnings == ()
    assert set(named.report.settings["attacks"]) == set(ATTACKS)
    assert named.report.settings["mode"] == (
        "PGD-20 and AutoAttack packs (8-bit, crafted on the network), replayed"
    )


def test_fewer_samples_are_a_seeded_choice_of_the_packs_images(bundle):
    few = evaluate(bundle, num_samples=5, attacks=("pgd20",))
    assert len(few.indices) == 5 and {row.num_samples for row in few.report.rows} == {5}
    other = evaluate(bundle, num_samples=5, seed=3, attacks=("pgd20",))
    assert not np.array_equal(few.indices, other.indices)
    assert few.report.warnings == ()
    for num, warnings in (
        (11, ()), (12, ()), (13, ("samples: 13 asked for, the packs hold 12",)), (None, ()),
    ):  # fmt: skip
        some = evaluate(bundle, num_samples=num, attacks=("pgd20",))
        assert len(some.indices) == min(num or 12, 12) and some.report.warnings == warnings


REFUSED = {
    "attack": ({"attacks": ("autoattack",)}, r"no autoattack pack \(it has pgd20, apgd\)"),
    "attack of a width": ({"attacks": ("apgd",)}, r"no apgd pack is for width 1 .*has none.*--wid"),
    "lambda": (
        {"lambdas": (0.5,), "attacks": ("pgd20",)},
        r"no pgd20 pack is for width 0.5 at λ=0.5 .*has λ 0, 0.3, 1",
    ),
    "lambda outside": ({"lambdas": (1.5,)}, r"lambda is 1.5: bundle tiny-run has \[0, 1\]"),
    "eps": ({"eps": 4 / 255}, r"eps is 0.0156863: the packs .* made at 8/255"),
    "width": ({"widths": (0.75,)}, r"no onnx file of width 0.75"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_packs_do_not_hold_is_refused_before_any_work(kind, bundle):
    changes, pattern = REFUSED[kind]
    with pytest.raises(InputError, match=pattern) as caught:
        evaluate(bundle, **changes)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert not (bundle.path / "eval").exists()


def test_the_same_eps_may_be_named(bundle):
    for eps in (8 / 255, 8 / 255 * (1 + 1e-12)):  # "8/255", or the digits of another language
        assert evaluate(bundle, eps=eps, attacks=("pgd20",)).report.settings["eps"] == 8 / 255
    with pytest.raises(InputError, match="made at 8/255"):
        evaluate(bundle, eps=8 / 255 * (1 + 1e-6), attacks=("pgd20",))


@pytest.mark.parametrize(("attacks", "told"), [(("pgd20",), False), (("pgd20", "square"), True)])
def test_a_radius_between_levels_is_told_where_square_runs(attacks, told, bundle):
    eps = 8.5 / 255
    for attack, width in packs_of(bundle):
        bundle = with_pack(bundle, dataclasses.replace(make_pack(width, attack), eps=eps))
    other = dataclasses.replace(bundle, spec=dataclasses.replace(bundle.spec, eps=eps))
    report = evaluate(other, attacks=attacks, num_queries=2).report
    assert (len(report.warnings) == 1) is told
    assert all("ε is 8.5/255, Square attacks within 8/255" in text for text in report.warnings)
    if told:
        assert report.settings["attacks"]["square"]["levels"] == 8


def test_packs_of_another_checkpoint_or_radius_are_refused(bundle):
    for changes, pattern in (
        ({"checkpoint_sha256": "d" * 64}, r"is of checkpoint dddddddddddd"),
        ({"eps": 9 / 255}, r"ε 9/255, expected 8/255"),
    ):
        other = with_pack(bundle, dataclasses.replace(make_pack(1.0, "apgd"), **changes))
        with pytest.raises(InputError, match=pattern):
            evaluate(other)


def test_the_attack_on_int8_is_taken_of_the_widths_that_have_it(bundle):
    """A bundle without int8 files lacks nothing; one with some has it for these."""
    assert not any("pgd20-int8" in text for text in evaluate(bundle, num_queries=5).report.warnings)
    with pytest.raises(
        InputError, match=r"no pgd20-int8 pack .*: oat-edge export --precision int8"
    ):
        evaluate(bundle, attacks=("pgd20-int8",))
    some = with_pack(bundle, make_pack(0.5, "pgd20-int8"))
    report = evaluate(some, num_queries=5).report
    assert list(report.settings["attacks"]) == ["pgd20", "pgd20-int8", "square"]
    for row in report.rows:
        assert ("pgd20-int8" in row.robust_accuracy) == (row.width == 0.5)
    assert not any("pgd20-int8" in text for text in report.warnings)
    # An order is kept as a whole or not at all.
    with pytest.raises(InputError, match=r"width 1 at λ=0 .*--width 1 --precision int8"):
        evaluate(some, attacks=("pgd20", "pgd20-int8"))
    (named,) = {
        tuple(row.robust_accuracy)
        for row in evaluate(some, attacks=("pgd20-int8",), widths=(0.5,)).report.rows
    }
    assert named[0] == "pgd20-int8" and "pgd20" not in named
    # Of λ that its packs do not hold it is left out, and that is told.
    report = evaluate(some, lambdas=(0.5,), num_queries=5).report
    assert any(text.startswith("pgd20-int8: left out") for text in report.warnings)
