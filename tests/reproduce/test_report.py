"""The report is arithmetic over which images are right."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.bench.schema import load
from oat_edge.operating_point import OperatingPoint
from oat_edge.reproduce.report import SCHEMA, ReproduceReport, assemble
from oat_edge.reproduce.spread import difference, share
from tests.reproduce.made_up import NUM, NUM_TEST, models_of, scores_of

rates = st.floats(0, 1)


@settings(max_examples=15)
@given(rates, rates, st.integers(1, 3))
def test_rows_and_differences_are_those_of_the_images(clean, attacked, num_seeds):
    config, models = models_of(num_seeds=num_seeds, dedicated=(0.0, 1.0))
    scores = [scores_of(model, clean=clean, attacked=attacked) for model in models]
    report = assemble(config, models, scores)
    assert report.missing == ()
    of = {(one.model.group, one.model.config.seed): one.points for one in scores}
    seeds = range(num_seeds)
    for row in report.rows:
        point = OperatingPoint(row.width, row.lam)
        right = [of[row.group, seed][point] for seed in seeds]
        assert row.standard_accuracy == share([one.clean for one in right])
        assert row.robust_accuracy == share([one.attacked for one in right])
        assert (row.num_test, row.num_attacked) == (NUM_TEST, NUM)
    (comparison,) = report.comparisons
    assert [one.lam for one in comparison.differences] == [0.0, 1.0]
    for one in comparison.differences:
        point = OperatingPoint(1.0, one.lam)
        assert one.robust_accuracy == difference(
            [of["oats", seed][point].attacked for seed in seeds],
            [of[one.other, seed][point].attacked for seed in seeds],
        )


def test_another_recipe_is_compared_by_what_each_lambda_asks_for_too():
    config, models = models_of(compare_recipe="fast", dedicated=(0.0,), num_seeds=3)
    scores = [
        scores_of(model, clean=1.0 if model.kind == "oats" else 0.2, attacked=1.0)
        for model in models
    ]
    compared = assemble(config, models, scores).comparisons[-1]
    assert compared.kind == "compared"
    assert [claim.status for claim in compared.claims] == ["shown"] * 3
    assert compared.claims[2].text.startswith("(1−λ)·SA + λ·RA better than that of oats-fast")
    for one in compared.differences:
        sa, ra = one.standard_accuracy, one.robust_accuracy
        assert one.objective.mean == pytest.approx((1 - one.lam) * sa.mean + one.lam * ra.mean)


def test_a_far_better_oats_is_shown_and_a_far_worse_one_refuted():
    config, models = models_of(dedicated=(), num_seeds=5)
    for oats, other, expected in ((1.0, 0.2, "shown"), (0.2, 1.0, "refuted")):
        scores = [
            scores_of(model, clean=oats if model.kind == "oats" else other, attacked=1.0)
            for model in models
        ]
        (comparison,) = assemble(config, models, scores).comparisons
        assert {claim.status for claim in comparison.claims} == {expected}
        assert len(comparison.claims) == 4


def test_every_kind_is_compared_where_it_has_points():
    config, models = models_of(oat_per_width=True, compare_recipe="fast", dedicated=(0.3,))
    report = assemble(config, models, [scores_of(model) for model in models])
    found = {one.kind: len(one.differences) for one in report.comparisons}
    assert found == {"dedicated": 1, "oat": 18, "compared": 18}


def test_what_is_not_done_is_named_and_not_compared():
    config, models = models_of(num_seeds=2, dedicated=(0.0, 1.0))
    done = [model for model in models if model.name != "dedicated-lambda1-seed1"]
    report = assemble(config, models, [scores_of(model) for model in done])
    assert report.missing == ("dedicated-lambda1-seed1",)
    assert "dedicated-lambda1-seed1" in report.warnings[0]
    (comparison,) = report.comparisons
    assert [one.seeds for one in comparison.differences] == [(0, 1), (0,)]
    alone = assemble(config, models, [scores_of(models[0])])
    assert alone.comparisons == () and len(alone.rows) == 18


def test_one_seed_and_masked_gradients_are_warned_of():
    config, models = models_of(dedicated=(1.0,))
    report = assemble(config, models, [scores_of(m, suspect=m.kind == "oats") for m in models])
    assert any("one seed" in text for text in report.warnings)
    (text,) = [text for text in report.warnings if "masked gradients" in text]
    assert "oats 1@0.3" in text and "dedicated" not in text
    config, models = models_of(dedicated=(1.0,), num_seeds=2)
    assert assemble(config, models, [scores_of(model) for model in models]).warnings == ()


def test_json_comes_back_as_it_was():
    config, models = models_of(dedicated=(0.0,), settings={"epochs": 3})
    report = assemble(config, models, [scores_of(model) for model in models])
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert value.pop("schema") == SCHEMA
    again = load(ReproduceReport, value, "report")
    assert again.rows == report.rows and again.comparisons == report.comparisons
    with pytest.raises(ValueError, match="lacks"):
        load(ReproduceReport, {name: value[name] for name in value if name != "rows"}, "report")
