"""The decisions of a policy, on simulated machines: no engine, no clock."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.errors import InputError
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime.policy_figures import WidthFigures
from oat_edge.runtime.policy_latency import reported
from oat_edge.runtime.policy_rules import LIKELY, Chooser, Rules
from tests.runtime.policy_machines import (
    any_figures,
    ladder,
    milliseconds,
    run,
    steady,
    threats,
)


@st.composite
def any_state(draw: st.DrawFn) -> Chooser:
    """A chooser after requests of any latency, deadline and threat."""
    figures = draw(any_figures())
    rules = Rules(window=5, recent=3, queue=4, calm=3, longest=50, min_gain=0.0)
    chooser = Chooser(figures, rules)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(0, 80))):
        choice = chooser.choose(
            deadline_ms=rng.uniform(0.1, 20), threat=rng.random(), waiting=int(rng.integers(4))
        )
        chooser.observe(choice, rng.uniform(0.1, 20) * rng.choice([0.1, 1.0, 3.0]))
    return chooser


@given(any_figures(), milliseconds, threats)
def test_the_first_choice_is_the_best_by_the_report(
    figures: list[WidthFigures], deadline_ms: float, threat: float
) -> None:
    choice = Chooser(figures).choose(deadline_ms=deadline_ms, threat=threat)
    scores = {
        one.width: reported(deadline_ms / one.quiet_ms[1])
        * max((1 - threat) * at.standard + threat * at.robust for at in one.settings)
        for one in figures
    }
    if reported(deadline_ms / figures[0].quiet_ms[1]) >= LIKELY:
        assert choice.right_in_time == pytest.approx(max(scores.values()), abs=1e-12)
        assert choice.reason == "fits"
    else:
        assert (choice.point.width, choice.reason) == (figures[0].width, "nothing fits")


@given(any_state(), milliseconds, milliseconds, threats, st.integers(0, 20))
def test_a_looser_deadline_never_promises_less(
    chooser: Chooser, a_ms: float, b_ms: float, threat: float, waiting: int
) -> None:
    tight = chooser.choose(deadline_ms=min(a_ms, b_ms), threat=threat, waiting=waiting)
    loose = chooser.choose(deadline_ms=max(a_ms, b_ms), threat=threat, waiting=waiting)
    assert loose.right_in_time >= tight.right_in_time - 1e-12


@given(any_state(), milliseconds, threats, st.integers(0, 20), st.integers(0, 20))
def test_more_that_wait_never_promise_more(
    chooser: Chooser, deadline_ms: float, threat: float, a: int, b: int
) -> None:
    few = chooser.choose(deadline_ms=deadline_ms, threat=threat, waiting=min(a, b))
    many = chooser.choose(deadline_ms=deadline_ms, threat=threat, waiting=max(a, b))
    assert many.right_in_time <= few.right_in_time + 1e-12


@given(any_state(), milliseconds, threats, threats)
def test_a_higher_threat_never_gives_less_robust_accuracy_in_time(
    chooser: Chooser, deadline_ms: float, a: float, b: float
) -> None:
    def robust(threat: float) -> float:
        choice = chooser.choose(deadline_ms=deadline_ms, threat=threat)
        point = choice.point
        (setting,) = (
            one for one in chooser._widths[point.width].figures.settings if one.lam == point.lam
        )
        return choice.in_time * setting.robust

    if a != b:
        assert robust(max(a, b)) >= robust(min(a, b)) - 1e-12


@given(any_figures(), st.lists(threats, min_size=2, unique=True))
def test_nor_does_it_when_small_gains_are_let_go(
    figures: list[WidthFigures], rising: list[float]
) -> None:
    chooser = Chooser(figures, Rules(min_gain=0.05))
    robust = []
    for threat in sorted(rising):
        choice = chooser.choose(threat=threat)
        (one,) = (one for one in figures if one.width == choice.point.width)
        chooser.observe(choice, one.quiet_ms[1])
        robust += [setting.robust for setting in one.settings if setting.lam == choice.point.lam]
    assert robust == sorted(robust)


@given(any_state(), milliseconds, threats)
def test_to_choose_changes_nothing(chooser: Chooser, deadline_ms: float, threat: float) -> None:
    other = copy.deepcopy(chooser)
    first = chooser.choose(deadline_ms=deadline_ms, threat=threat)
    chooser.choose(deadline_ms=deadline_ms / 2, threat=1 - threat)
    again = chooser.choose(deadline_ms=deadline_ms, threat=threat)
    assert first == again == other.choose(deadline_ms=deadline_ms, threat=threat)


def test_when_nothing_fits_the_fastest_runs_and_it_says_so() -> None:
    choices = run(Chooser(ladder()), 100, steady(1.0), deadline_ms=0.5)
    assert {(choice.point.width, choice.reason) for choice in choices} == {(0.5, "nothing fits")}


def test_requests_with_different_deadlines_do_not_disturb_each_other() -> None:
    limits_ms = [1.2, 50.0, 2.0]
    turns = iter(limits_ms * 100)
    choices = run(Chooser(ladder()), 300, steady(1.0), deadline_ms=lambda: next(turns))
    assert [choice.point.width for choice in choices] == [0.5, 1.0, 0.75] * 100


def test_no_deadline_gives_the_most_accurate_point() -> None:
    assert Chooser(ladder()).choose(threat=0.0).point == OperatingPoint(1.0, 0.0)
    assert Chooser(ladder()).choose().point == OperatingPoint(1.0, 1.0)


def test_small_gains_do_not_move_the_point() -> None:
    (one,) = ladder({1.0: 1.0})
    # At 1/3 all λ are equally good here.
    around = [1 / 3 + 0.002 * (-1) ** i for i in range(20)]
    for min_gain, num in ((0.002, 1), (0.0, 2)):
        chooser = Chooser([one], Rules(min_gain=min_gain))
        points = set()
        for threat in around:
            choice = chooser.choose(threat=threat)
            chooser.observe(choice, 1.0)
            points.add(choice.point)
        assert len(points) == num


@pytest.mark.parametrize(
    "wrong",
    [
        {"spare": 8}, {"spare": -1}, {"recent": 65}, {"queue": 0}, {"calm": 0}, {"calm": 2000},
        {"min_gain": 2.0}, {"min_gain": math.nan},
    ],
)  # fmt: skip
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected"):
        Rules(**wrong)  # type: ignore[arg-type]
