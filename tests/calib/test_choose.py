from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.calib.choose import MAX_RUNNERS_UP, choose, nearest_miss, objectives, runners_up
from oat_edge.calib.goal import Goal
from oat_edge.errors import InputError
from tests.calib.points import goals, point, points, pools

MANY = settings(max_examples=100, deadline=None)


def robust_of(p):
    """Robust accuracy as it counts."""
    if p.robust_accuracy is None or p.robust_ceiling is None:
        return p.robust_accuracy
    return min(p.robust_accuracy, p.robust_ceiling)


def lower_end(share, n):
    """Wilson's lower end, from the formula in a textbook."""
    z = 1.959963984540054
    right = round(share * n)
    if right == 0:
        return 0.0
    p = right / n
    return (p + z * z / (2 * n) - z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (
        1 + z * z / n
    )


def fits(p, goal):
    """Word for word: every figure that has a bound is known and keeps it."""
    at_most = [
        (p.latency_ms, goal.max_latency_ms),
        (p.energy_mj, goal.max_energy_mj),
        (p.memory_mb, goal.max_memory_mb),
    ]
    for value, bound in at_most:
        if bound is not None and (value is None or value > bound):
            return False
    for share, bound in ((robust_of(p), goal.min_robust), (p.standard_accuracy, goal.min_standard)):
        if bound is None:
            continue
        if share is None:
            return False
        if (lower_end(share, p.num_samples) if goal.confident else share) < bound:
            return False
    return True


def better(p, q, prefer):
    """Whether p is preferred to q: the first figure in which they differ decides."""
    figures = {
        "robust": lambda r: -1 if robust_of(r) is None else robust_of(r),
        "standard": lambda r: -1 if r.standard_accuracy is None else r.standard_accuracy,
        "latency": lambda r: -1e9 if r.latency_ms is None else -r.latency_ms,
    }
    for name in [prefer, *(n for n in figures if n != prefer)]:
        if figures[name](p) != figures[name](q):
            return figures[name](p) > figures[name](q)
    return False


@MANY
@given(pool=pools, goal=goals)
def test_the_choice_is_that_of_brute_force(pool, goal):
    best = None
    for one in pool:
        if fits(one, goal) and (best is None or better(one, best, goal.prefer)):
            best = one
    chosen = choose(pool, goal)
    if best is None:
        assert chosen is None
        return
    assert chosen in pool and fits(chosen, goal)
    assert not better(best, chosen, goal.prefer) and not better(chosen, best, goal.prefer)


@MANY
@given(pool=pools, goal=goals)
def test_no_point_that_fits_dominates_the_choice(pool, goal):
    chosen = choose(pool, goal)
    for other in pool if chosen else ():
        if not fits(other, goal):
            continue
        costs = list(zip(objectives(other, goal.prefer), objectives(chosen, goal.prefer),
                         strict=True))  # fmt: skip
        assert not (all(a <= b for a, b in costs) and any(a < b for a, b in costs))


@MANY
@given(pool=pools, goal=goals, order=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(pool, goal, order):
    shuffled = list(pool)
    order.shuffle(shuffled)
    assert choose(shuffled, goal) == choose(pool, goal)
    assert nearest_miss(shuffled, goal) == nearest_miss(pool, goal)


@MANY
@given(pool=st.lists(points, min_size=1, max_size=12), goal=goals, data=st.data())
def test_one_more_row_that_is_worse_changes_nothing(pool, goal, data):
    model = data.draw(st.sampled_from(pool))
    worse = {}
    for figure, sign in {
        "latency_ms": 1, "energy_mj": 1, "memory_mb": 1,
        "standard_accuracy": -1, "robust_accuracy": -1,
    }.items():  # fmt: skip
        value = getattr(model, figure)
        step = data.draw(st.sampled_from([0, 1, None]))
        if value is not None and step is not None:
            worse[figure] = max(0.0, value + sign * step * 0.02)
        else:
            worse[figure] = None  # a figure that is lost is worse, too
    added = dataclasses.replace(model, **worse, artifact="z.onnx", width=1.0, pinned=True)
    if objectives(added, goal.prefer) == objectives(model, goal.prefer):
        return
    assert choose([*pool, added], goal) == choose(pool, goal)


@MANY
@given(pool=pools, goal=goals, data=st.data())
def test_a_tighter_constraint_never_improves_the_objective(pool, goal, data):
    name = data.draw(st.sampled_from(["max_latency_ms", "min_robust", "min_standard",
                                      "max_energy_mj", "max_memory_mb"]))  # fmt: skip
    old = getattr(goal, name)
    if name.startswith("max"):
        new = data.draw(st.sampled_from([0.5, 1.0, 3.0]))
        new = new if old is None else min(old, new)
    else:
        new = data.draw(st.sampled_from([0.1, 0.4, 0.9]))
        new = new if old is None else max(old, new)
    tight = dataclasses.replace(goal, **{name: new})
    before, after = choose(pool, goal), choose(pool, tight)
    if after is not None:
        assert before is not None
        assert objectives(before, goal.prefer) <= objectives(after, goal.prefer)


@MANY
@given(pool=pools, goal=goals)
def test_confidence_only_takes_away(pool, goal):
    loose = dataclasses.replace(goal, confident=False)
    strict = dataclasses.replace(goal, confident=True)
    assert all(loose.met(one) for one in pool if strict.met(one))


@MANY
@given(pool=st.lists(points, min_size=1, max_size=12), goal=goals)
def test_the_nearest_miss_lacks_least(pool, goal):
    if any(fits(one, goal) for one in pool):
        return

    def lacks(p):
        """How many constrained figures are not known, and the largest share that is lacking."""
        unknown, largest = 0, 0.0
        for value, bound in (
            (p.latency_ms, goal.max_latency_ms),
            (p.energy_mj, goal.max_energy_mj),
            (p.memory_mb, goal.max_memory_mb),
        ):
            if bound is not None:
                unknown += value is None
                largest = max(largest, 0 if value is None else (value - bound) / bound)
        for share, bound in (
            (robust_of(p), goal.min_robust),
            (p.standard_accuracy, goal.min_standard),
        ):
            if bound is not None:
                unknown += share is None
                if share is not None and bound > 0:
                    value = lower_end(share, p.num_samples) if goal.confident else share
                    largest = max(largest, (bound - value) / bound)
        return unknown, round(largest, 9)

    assert lacks(nearest_miss(pool, goal)) == min(lacks(one) for one in pool)


@MANY
@given(pool=pools, goal=goals)
def test_runners_up_fit_are_others_and_come_in_order(pool, goal):
    chosen = choose(pool, goal)
    if chosen is None:
        return
    found = runners_up(pool, goal, chosen)
    assert len(found) <= MAX_RUNNERS_UP and chosen not in found
    assert all(one in pool and fits(one, goal) for one in found)
    ranks = [objectives(one, goal.prefer) for one in found]
    assert ranks == sorted(ranks) and all(objectives(chosen, goal.prefer) <= one for one in ranks)
    others = {one.file for one in pool if fits(one, goal)} - {chosen.file}
    assert {one.file for one in found} - {chosen.file} == others


def test_ties_go_to_what_costs_less_and_keeps_the_knob():
    plain = point()
    for worse in (
        {"pinned": True}, {"between_knots": True}, {"energy_mj": 2.0}, {"energy_mj": None},
        {"memory_mb": 60.0}, {"width": 1.0, "energy_mj": 1.5},
    ):  # fmt: skip
        other = dataclasses.replace(plain, artifact="a-first-in-the-alphabet.onnx", **worse)
        assert choose([other, plain], Goal()) == plain
    narrow = dataclasses.replace(plain, width=0.5, artifact="z.onnx")
    assert choose([plain, narrow], Goal()) == narrow


def test_a_preference_decides_and_the_other_two_follow():
    robust = point(lam=1.0, robust_accuracy=0.5, standard_accuracy=0.8, latency_ms=2.0)
    standard = point(lam=0.1, robust_accuracy=0.3, standard_accuracy=0.96, latency_ms=2.0)
    fast = point(width=0.5, robust_accuracy=0.2, standard_accuracy=0.7, latency_ms=1.0)
    pool = [robust, standard, fast]
    assert choose(pool, Goal(prefer="robust")) == robust
    assert choose(pool, Goal(prefer="standard")) == standard
    assert choose(pool, Goal(prefer="latency")) == fast
    assert choose(pool, Goal(prefer="latency", min_robust=0.25)) == robust
    assert choose(pool, Goal(prefer="robust", max_latency_ms=1.5)) == fast
    assert choose(pool, Goal(max_latency_ms=0.9)) is None


@pytest.mark.parametrize("prefer", ["robust", "standard", "latency"])
def test_of_points_that_tie_in_the_first_the_second_decides_not_the_third(prefer):
    """The order is robust, standard, latency without the preferred one."""
    step = {
        "robust": {"robust_accuracy": 0.5},
        "standard": {"standard_accuracy": 0.95},
        "latency": {"latency_ms": 0.5},
    }
    second, third = (name for name in step if name != prefer)
    better_second, better_third = point(**step[second]), point(**step[third])
    assert choose([better_third, better_second], Goal(prefer=prefer)) == better_second
    assert choose([better_third, point()], Goal(prefer=prefer)) == better_third


def test_between_knots_robustness_counts_up_to_that_of_the_knots():
    between = point(lam=0.5, robust_accuracy=0.44, robust_ceiling=0.42, between_knots=True)
    assert choose([between], Goal(min_robust=0.43)) is None
    assert choose([between], Goal(min_robust=0.42)) == between
    knot = point(lam=1.0, robust_accuracy=0.42)
    assert choose([between, knot], Goal()) == knot


@pytest.mark.parametrize(
    ("facts", "part"),
    [
        ({"min_robust": 40}, "min_robust is 40: expected a share"),
        ({"min_standard": -0.1}, "min_standard is -0.1"),
        ({"min_robust": math.nan}, "min_robust is nan"),
        ({"max_latency_ms": 0}, "max_latency_ms is 0"),
        ({"max_energy_mj": math.inf}, "max_energy_mj is inf"),
        ({"max_memory_mb": math.nan}, "max_memory_mb is nan"),
        ({"prefer": "speed"}, "prefer is 'speed'"),
        ({"percentile": "p90"}, "percentile is 'p90'"),
    ],
)
def test_a_goal_that_makes_no_sense_is_refused(facts, part):
    with pytest.raises(InputError, match=part):
        Goal(**facts)
