from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.attacks.square import square_attack
from oat_edge.bundle import Bundle, add_artifacts
from oat_edge.calib.choose import choose, objectives
from oat_edge.calib.goal import Goal
from oat_edge.calib.lambda_search import SearchLimits, engine_measure, search
from oat_edge.calib.refine import engines_of, find
from oat_edge.calib.reports import measured_points, of_device, read_reports
from oat_edge.errors import InputError
from oat_edge.evaluation.accuracy import Accuracy, to_float
from oat_edge.runtime import open_runner
from tests.calib.points import make_bundle, measured_plainly, point, report_of, save

WIDE = "w1.00-fp32.onnx"
KNOTS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)


def made_up(standard, robust, tried=None):
    """Accuracies that are functions of λ; `tried` notes where they were asked for."""

    def measure(lam):
        if tried is not None:
            tried.append(lam)
        return Accuracy(
            standard_accuracy=standard(lam), robust_accuracy={"worst": robust(lam)}, num_samples=100
        )

    return measure


def at_knots(standard, robust):
    return [
        point(lam=lam, standard_accuracy=standard(lam), robust_accuracy=robust(lam))
        for lam in KNOTS
    ]


def falling(lam):
    return 0.9 - 0.2 * lam


def rising(lam):
    return 0.3 + 0.2 * lam


def test_below_the_first_knot_is_searched_where_lambda_goes_through_zero():
    goal = Goal(min_robust=0.31, prefer="standard")  # which is reached at λ = 0.05
    for through_zero in (False, True):
        limits = SearchLimits(through_zero=through_zero)
        measure = made_up(falling, rising)
        found = search(at_knots(falling, rising), measure, goal, limits=limits)
        best = choose([*at_knots(falling, rising), *found], goal)
        assert best.between_knots == through_zero
        if through_zero:
            assert 0.05 <= best.lam <= 0.05 + 2 * limits.resolution
        else:
            assert best.lam == 0.1


def test_the_last_lambda_that_keeps_the_bound_is_found():
    goal = Goal(min_robust=0.43, prefer="standard")  # which is reached at λ = 0.65
    found = search(at_knots(falling, rising), made_up(falling, rising), goal)
    best = choose([*at_knots(falling, rising), *found], goal)
    assert best.between_knots and 0.65 <= best.lam <= 0.65 + 2 * SearchLimits().resolution
    assert all(0.4 < one.lam < 1 for one in found)


def test_a_goal_that_no_knot_meets_is_met_between_them():
    goal = Goal(min_robust=0.42, min_standard=0.77)  # 0.6 <= λ <= 0.65
    knots = at_knots(falling, rising)
    assert choose(knots, goal) is None
    found = search(knots, made_up(falling, rising), goal)
    assert 0.6 <= choose([*knots, *found], goal).lam <= 0.65


def test_nothing_is_measured_where_nothing_can_be_better():
    tried = []
    knots = at_knots(falling, rising)
    for goal in (Goal(min_robust=0.6), Goal(max_latency_ms=0.5), Goal(prefer="standard")):
        assert search(knots, made_up(falling, rising, tried), goal) == []
    better = point(standard_accuracy=0.99, robust_accuracy=0.5, artifact="other.onnx")
    assert search(knots, made_up(falling, rising, tried), Goal(), best=better) == []
    assert tried == []


def test_a_lambda_between_knots_is_no_more_robust_than_they_are():
    """No images were crafted there: what looks more robust is only less attacked."""
    knots = at_knots(lambda lam: 0.9, rising)
    flattered = made_up(lambda lam: 0.9, lambda lam: rising(lam) if lam in KNOTS else 0.9)
    found = search(knots, flattered, Goal())
    best = choose([*knots, *found], Goal())
    assert best.lam == 1.0 and not best.between_knots


shares = st.integers(0, 20).map(lambda k: k / 20)


@settings(max_examples=100, deadline=None)
@given(
    standard=st.lists(shares, min_size=101, max_size=101),
    robust=st.lists(shares, min_size=101, max_size=101),
    goal=st.builds(
        Goal,
        min_robust=st.sampled_from([None, 0.3, 0.6]),
        min_standard=st.sampled_from([None, 0.3, 0.6]),
        prefer=st.sampled_from(["robust", "standard", "latency"]),
    ),
    most=st.integers(1, 20),
    resolution=st.sampled_from([0.01, 0.05, 0.2]),
)
def test_a_search_measures_little_only_in_gaps_and_never_makes_the_choice_worse(
    standard, robust, goal, most, resolution
):
    tried = []

    def sa(lam):
        return standard[round(100 * lam)]

    def ra(lam):
        return robust[round(100 * lam)]

    knots = at_knots(sa, ra)
    limits = SearchLimits(most=most, resolution=resolution)
    found = search(knots, made_up(sa, ra, tried), goal, limits=limits)
    assert [one.lam for one in found] == tried and len(tried) == len(set(tried)) <= most
    assert all(KNOTS[1] < lam < 1 and lam not in KNOTS for lam in tried)
    lams = sorted([*KNOTS[1:], *tried])
    inside = [b - a for a, b in pairwise(lams) if {a, b} & set(tried)]
    assert all(gap >= resolution - 1e-6 for gap in inside)
    for one in found:
        assert (one.standard_accuracy, one.robust_accuracy) == (sa(one.lam), ra(one.lam))
        low = max(lam for lam in KNOTS if lam < one.lam)
        high = min(lam for lam in KNOTS if lam > one.lam)
        assert one.robust_ceiling == max(ra(low), ra(high))
    before, after = choose(knots, goal), choose([*knots, *found], goal)
    if before is not None:
        assert objectives(after, goal.prefer) <= objectives(before, goal.prefer)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny-run")


@pytest.fixture(scope="module")
def measured(bundle, tmp_path_factory):
    path = save(report_of(bundle), tmp_path_factory.mktemp("reports") / "report.json")
    return measured_points(of_device(read_reports([path]), None))


@pytest.mark.parametrize("lam", [0.0, 0.15, 0.3, 0.55, 1.0])
def test_an_engine_is_measured_as_a_plain_evaluation_does(lam, bundle, measured):
    packs = engines_of(bundle, measured).packs
    for width, file in ((0.5, "w0.50-fp32.onnx"), (1.0, "w1.00-fp32.onnx")):
        with open_runner(bundle.path, width, threads=1) as runner:
            accuracy = engine_measure(runner, packs, width)(lam)
        assert accuracy.num_samples == len(packs)
        found = accuracy.standard_accuracy, accuracy.robust_accuracy["worst"]
        assert found == measured_plainly(bundle, file, lam)


def test_square_attacks_the_engine_at_the_very_lambda(bundle, measured):
    packs = engines_of(bundle, measured).packs
    with open_runner(bundle.path, 1.0, threads=1) as runner:
        accuracy = engine_measure(runner, packs, 1.0, queries=40, seed=3)(0.6)
        without = engine_measure(runner, packs, 1.0)(0.6)
        clean = runner.infer(to_float(packs.images), 0.6).argmax(1) == packs.labels
        right = clean.copy()
        right[clean] = square_attack(
            lambda image: runner.infer(image, 0.6), packs.images[clean], packs.labels[clean],
            eps=packs.eps, num_queries=40, seed=3, batch_size=64,
        ).right  # fmt: skip
    assert accuracy.robust_accuracy["square"] == right.mean() < clean.mean()
    worst = accuracy.robust_accuracy["worst"]
    assert worst <= min(without.robust_accuracy["worst"], right.mean())


def test_the_search_of_a_bundle_finds_what_no_knot_gives_and_its_figures_are_true(bundle, measured):
    robust = {p.lam: p.robust_accuracy for p in measured.points if p.artifact == WIDE}
    bound = max(robust[0.0], robust[0.3]) + 0.01
    assert bound < robust[1.0]  # λ = 1 alone meets it
    goal = Goal(min_robust=bound, prefer="standard")
    calls = []
    found = find(
        measured.points, goal, engines_of(bundle, measured),
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    tried = [p for p in found.points if p.between_knots]
    assert set(found.searched) == {WIDE} and 0.3 < found.chosen.lam < 1
    assert tried and len(calls) == found.num_measured == len(tried) + 3 * len(found.searched)
    assert all(0 <= done < total for done, total, _ in calls)
    for one in found.points:
        plain = measured_plainly(bundle, one.artifact, one.lam)
        assert (one.standard_accuracy, one.robust_accuracy) == plain
    assert found.chosen == choose(found.points, goal) and found.warnings == ()
    before = choose(measured.points, goal)
    assert before.lam == 1 and found.chosen.standard_accuracy > before.standard_accuracy
    assert found.searched[WIDE] == tuple(sorted(p.lam for p in tried))


def test_what_the_machine_does_not_see_is_told_and_its_own_figures_count(bundle, measured):
    wrong = tuple(
        dataclasses.replace(p, standard_accuracy=p.standard_accuracy + 0.1, robust_accuracy=0.0)
        if p.artifact == WIDE and p.lam == 0.3
        else p
        for p in measured.points
    )
    found = find(wrong, Goal(min_standard=0.1, prefer="robust"), engines_of(bundle, measured),
                 limits=SearchLimits(most=2))  # fmt: skip
    assert WIDE in found.searched
    assert any("λ=0.3: SA is" in text and "the report says" in text for text in found.warnings)
    (seen,) = [p for p in found.points if p.artifact == WIDE and p.lam == 0.3]
    assert (seen.standard_accuracy, seen.robust_accuracy) == measured_plainly(
        bundle, seen.artifact, 0.3
    )


def test_with_square_the_choice_itself_is_attacked(bundle, measured):
    """Even where no λ between the knots could be better."""
    goal = Goal(prefer="latency", max_latency_ms=0.6)
    plain = find(measured.points, goal, engines_of(bundle, measured), limits=SearchLimits(most=1))
    found = find(
        measured.points, goal, engines_of(bundle, measured, queries=30),
        limits=SearchLimits(most=1),
    )  # fmt: skip
    assert "square" in found.chosen.attacks and "square" not in plain.chosen.attacks
    assert found.chosen.robust_accuracy <= plain.chosen.robust_accuracy
    assert any("Square attacked the files that were searched" in text for text in found.warnings)


def test_what_cannot_be_compared_is_not_searched(bundle, measured, tmp_path):
    other = dataclasses.replace(bundle, checkpoint_sha256="d" * 64)
    with pytest.raises(InputError, match="is of checkpoint dddddddddddd…"):
        engines_of(other, measured)
    fewer = [dataclasses.replace(p, num_samples=10) for p in measured.points]
    with pytest.raises(InputError, match="figures are of 10 images, the packs hold 150"):
        engines_of(bundle, dataclasses.replace(measured, points=tuple(fewer)))
    stronger = [dataclasses.replace(p, attacks=("aa", "pgd20")) for p in measured.points]
    with pytest.raises(InputError, match="includes aa, which the bundle has no packs of"):
        engines_of(bundle, dataclasses.replace(measured, points=tuple(stronger)))
    (source,) = measured.sources
    alone = dataclasses.replace(
        source.report, settings={**source.report.settings, "transfer": False}
    )
    sources = (dataclasses.replace(source, report=alone),)
    with pytest.raises(InputError, match="bench again without --no-transfer"):
        engines_of(bundle, dataclasses.replace(measured, sources=sources))
    squared = [dataclasses.replace(p, attacks=("pgd20", "square")) for p in measured.points]
    with pytest.raises(InputError, match="includes Square: pass --queries 50"):
        engines_of(bundle, dataclasses.replace(measured, points=tuple(squared)))
    bare = dataclasses.replace(
        bundle, artifacts=tuple(a for a in bundle.artifacts if a.format != "attacks")
    )
    with pytest.raises(InputError, match="no attack packs"):
        engines_of(bare, measured)


def test_a_file_that_has_changed_since_is_left_as_the_report_has_it(tmp_path, measured):
    bundle = make_bundle(tmp_path / "b")
    artifact = next(a for a in bundle.artifacts if a.file == WIDE)
    add_artifacts(
        bundle.path, [dataclasses.replace(artifact, sha256="e" * 64)], run=bundle.run,
        checkpoint_sha256=bundle.checkpoint_sha256, spec=bundle.spec,
    )  # fmt: skip
    engines = engines_of(Bundle.open(bundle.path), measured)
    wide = [p for p in measured.points if p.width == 1.0]
    found = find(wide, Goal(min_robust=0.71, prefer="standard"), engines)
    assert found.searched == {} and found.points == tuple(wide)
    assert len(found.warnings) == 1 and "is another file since it was benched" in found.warnings[0]
