"""The decisions of a policy, on simulated machines: no engine, no clock."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.errors import InputError
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime.policy_figures import Setting, WidthFigures
from oat_edge.runtime.policy_rules import LONG_STAY, Choice, Chooser, Rules

LAMBDAS = (0.0, 0.1, 0.4, 1.0)
# Three widths as networks have them: wider is slower and better.
QUIET_MS = {0.5: 1.0, 0.75: 1.6, 1.0: 2.5}
RULES = Rules()

shares = st.integers(0, 50).map(lambda k: k / 50)
threats = st.integers(0, 20).map(lambda k: k / 20)
milliseconds = st.floats(0.1, 20.0)


@st.composite
def any_figures(draw: st.DrawFn) -> list[WidthFigures]:
    """One to four widths of any latency and accuracy whatever; the wider take longer."""
    widths = draw(st.lists(st.sampled_from([0.25, 0.5, 0.75, 1.0]), min_size=1, unique=True))
    quiet_ms = sorted(draw(milliseconds) for _ in widths)
    return [
        WidthFigures(
            width=width,
            settings=tuple(
                Setting(lam=lam, standard=draw(shares), robust=draw(shares)) for lam in LAMBDAS
            ),
            quiet_ms={1: ms},
        )
        for width, ms in zip(sorted(widths), quiet_ms, strict=True)
    ]


def ladder(quiet_ms: dict[float, float] = QUIET_MS) -> list[WidthFigures]:
    """Widths of which the wider is better at every threat."""
    return [
        WidthFigures(
            width=width,
            settings=tuple(
                Setting(
                    lam=lam, standard=0.8 + 0.1 * width - 0.2 * lam, robust=0.4 * lam + 0.1 * width
                )
                for lam in LAMBDAS
            ),
            quiet_ms={1: ms},
        )
        for width, ms in quiet_ms.items()
    ]


def run(
    chooser: Chooser,
    num: int,
    latency_ms: Callable[[float], float],
    *,
    deadline_ms: float | Callable[[], float] = 3.0,
    threat: float = 0.3,
) -> list[Choice]:
    """`num` requests in a row on a machine whose widths take `latency_ms(width)`."""
    choices = []
    for _ in range(num):
        limit_ms = deadline_ms() if callable(deadline_ms) else deadline_ms
        choice = chooser.choose(deadline_ms=limit_ms, threat=threat)
        chooser.observe(choice, latency_ms(choice.point.width))
        choices.append(choice)
    return choices


def steady(scale: float) -> Callable[[float], float]:
    """Every request takes `scale` times what the report says."""
    return lambda width: scale * QUIET_MS[width]


def noisy(seed: int, scale: float, spread: float) -> Callable[[float], float]:
    rng = np.random.default_rng(seed)
    return lambda width: scale * QUIET_MS[width] * rng.uniform(1.0 - spread, 1.0)


def switches(choices: list[Choice]) -> int:
    widths = [choice.point.width for choice in choices]
    return sum(a != b for a, b in itertools.pairwise(widths))


def probes(choices: list[Choice]) -> int:
    return sum(choice.reason == "probe" for choice in choices)


@st.composite
def any_state(draw: st.DrawFn) -> Chooser:
    """A chooser after requests of any latency, deadline and threat."""
    figures = draw(any_figures())
    rules = Rules(window=5, calm=3, longest=50, min_gain=0.0)
    chooser = Chooser(figures, rules)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(0, 80))):
        choice = chooser.choose(deadline_ms=rng.uniform(0.1, 20), threat=rng.random())
        chooser.observe(choice, rng.uniform(0.1, 20) * rng.choice([0.1, 1.0, 3.0]))
    return chooser


@given(any_figures(), milliseconds, threats)
def test_the_first_choice_is_the_best_of_what_fits(
    figures: list[WidthFigures], deadline_ms: float, threat: float
) -> None:
    choice = Chooser(figures).choose(deadline_ms=deadline_ms, threat=threat)
    fitting = [one for one in figures if one.quiet_ms[1] <= deadline_ms]
    if fitting:
        best = max(
            (1 - threat) * setting.standard + threat * setting.robust
            for one in fitting
            for setting in one.settings
        )
        assert choice.expected_accuracy == pytest.approx(best, abs=1e-12)
        assert choice.reason == "fits" and choice.expected_ms <= deadline_ms
    else:
        assert choice.expected_ms == min(one.quiet_ms[1] for one in figures)
        assert choice.reason == "nothing fits"


@given(any_state(), milliseconds, milliseconds, threats)
def test_a_looser_deadline_never_gives_less_expected_accuracy(
    chooser: Chooser, a_ms: float, b_ms: float, threat: float
) -> None:
    tight = chooser.choose(deadline_ms=min(a_ms, b_ms), threat=threat)
    loose = chooser.choose(deadline_ms=max(a_ms, b_ms), threat=threat)
    assert loose.expected_accuracy >= tight.expected_accuracy - 1e-12


@given(any_state(), milliseconds, threats, threats)
def test_a_higher_threat_never_gives_less_robust_accuracy(
    chooser: Chooser, deadline_ms: float, a: float, b: float
) -> None:
    def robust(threat: float) -> float:
        point = chooser.choose(deadline_ms=deadline_ms, threat=threat).point
        (setting,) = (
            one for one in chooser._widths[point.width].figures.settings if one.lam == point.lam
        )
        return setting.robust

    if a != b:
        assert robust(max(a, b)) >= robust(min(a, b))


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
def test_only_a_probe_runs_what_is_predicted_to_be_late(
    chooser: Chooser, deadline_ms: float, threat: float
) -> None:
    predicted_ms = chooser.predicted_ms()
    choice = chooser.choose(deadline_ms=deadline_ms, threat=threat)
    ms = predicted_ms[choice.point.width]
    if choice.reason == "fits":
        assert ms == choice.expected_ms <= deadline_ms
    elif choice.reason == "nothing fits":
        assert ms == min(predicted_ms.values()) > deadline_ms
    else:
        assert ms > deadline_ms


@given(any_state(), milliseconds, threats)
def test_to_choose_changes_nothing(chooser: Chooser, deadline_ms: float, threat: float) -> None:
    other = copy.deepcopy(chooser)
    first = chooser.choose(deadline_ms=deadline_ms, threat=threat)
    chooser.choose(deadline_ms=deadline_ms / 2, threat=1 - threat)
    again = chooser.choose(deadline_ms=deadline_ms, threat=threat)
    assert first == again == other.choose(deadline_ms=deadline_ms, threat=threat)


@st.composite
def true_ms(draw: st.DrawFn) -> dict[float, float]:
    """What widths really take: up to four times more or less than the report says, each."""
    factors = [draw(st.floats(0.25, 4.0)) for _ in QUIET_MS]
    found = (factor * ms for factor, ms in zip(factors, QUIET_MS.values(), strict=True))
    return dict(zip(QUIET_MS, sorted(found), strict=True))


@settings(max_examples=30)
@given(true_ms(), st.floats(0.5, 8.0))
def test_on_a_steady_machine_it_settles(truth: dict[float, float], deadline_ms: float) -> None:
    chooser = Chooser(ladder())
    choices = run(chooser, 600, truth.__getitem__, deadline_ms=deadline_ms)
    settled = [choice for choice in choices[300:] if choice.reason != "probe"]
    assert len({choice.point for choice in settled}) == 1
    # Though the report was wrong, what is said to fit does, and if anything does it is found.
    late = truth[settled[-1].point.width] > deadline_ms
    assert late == (settled[-1].reason == "nothing fits") == (truth[0.5] > deadline_ms)


@settings(max_examples=30)
@given(true_ms(), st.floats(0.05, 1.5), st.integers(0, 2**32))
def test_noise_makes_no_flapping(truth: dict[float, float], sigma: float, seed: int) -> None:
    """Stationary latencies with heavy tails: what a rule without memory would flap on."""
    rng = np.random.default_rng(seed)
    num = 1500
    choices = run(
        Chooser(ladder()),
        num,
        lambda width: truth[width] * rng.lognormal(0.0, sigma),
    )
    # To be left twice without the wait doubling, a width must run for LONG_STAY times its wait.
    doublings = math.log2(RULES.longest / RULES.calm) + 1
    most = num / (RULES.calm * (1 + LONG_STAY)) + doublings
    assert probes(choices) <= len(QUIET_MS) * most
    # One to the wider width and one back; a level of the machine moves those that rest, too.
    assert switches(choices) <= 4 * len(QUIET_MS) * most


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.floats(1.8, 2.9), st.integers(30, 200))
def test_a_step_of_load_and_its_end(seed: int, load: float, num_loaded: int) -> None:
    chooser = Chooser(ladder())
    quiet, loaded = noisy(seed, 1.0, 0.2), noisy(seed, load, 0.2)
    before = run(chooser, 100, quiet)
    assert {choice.point.width for choice in before} == {1.0}
    during = run(chooser, num_loaded, loaded)
    # Two slow ones, then the widest is out; and as all are slow, at once the one that fits.
    assert [choice.point.width for choice in during[:2]] == [1.0, 1.0]
    rest = during[2 + RULES.window :]
    always_late = [c for c in rest if 0.8 * load * QUIET_MS[c.point.width] > 3.0]
    assert during[2].point.width < 1.0 and len(always_late) == probes(always_late)
    after = run(chooser, RULES.longest, quiet)
    widths = [choice.point.width for choice in after]
    back = widths.index(1.0)
    assert back <= 2 * (RULES.window + RULES.calm) + num_loaded
    assert set(widths[back + 1 :]) == {1.0}


def test_after_a_long_stay_it_is_back_in_a_window_and_a_request() -> None:
    chooser = Chooser(ladder())
    run(chooser, 100, steady(1.0))
    during = run(chooser, 60, steady(3.0))
    assert {choice.point.width for choice in during[2:]} == {0.5}
    after = run(chooser, 50, steady(1.0))
    first = next(i for i, choice in enumerate(after) if choice.point.width == 1.0)
    assert first <= RULES.window + 1
    assert after[first].reason == "probe" and after[first + 1].reason == "fits"


@given(st.integers(0, 19), st.floats(1.5, 100.0))
def test_a_lone_slow_request_is_an_accident(place: int, slow: float) -> None:
    chooser = Chooser(ladder())
    latencies_ms = [2.5] * 200
    latencies_ms[place :: RULES.window] = [2.5 * slow] * len(latencies_ms[place :: RULES.window])
    following = iter(latencies_ms)
    choices = run(chooser, 200, lambda width: next(following))
    assert {choice.point.width for choice in choices} == {1.0}


def test_what_slows_one_width_alone_costs_at_last_one_request_in_longest() -> None:
    """The widest is late by itself: the machine's level lures, each probe fails."""
    rules = Rules(calm=10, longest=200)
    chooser = Chooser(ladder(), rules)
    num = 5000
    choices = run(chooser, num, lambda width: (4.0 if width == 1.0 else 1.0) * QUIET_MS[width])
    failed = [choice for choice in choices if choice.point.width == 1.0]
    doublings = math.log2(rules.longest / rules.calm) + 1
    assert rules.longest and num / rules.longest / 2 <= len(failed)
    assert len(failed) <= num / rules.longest + doublings + rules.spare + 1


def test_a_width_whose_report_is_far_too_high_is_found() -> None:
    """On a machine twice as fast as the report's, the widest fits: that is found by a probe."""
    choices = run(Chooser(ladder()), 200, steady(0.5), deadline_ms=2.0)
    assert choices[0].point.width == 0.75 and choices[-1].point.width == 1.0
    assert probes(choices) == 1


def test_when_the_narrow_width_alone_is_slow_the_wide_one_gets_its_chance() -> None:
    """The machine looks slow from what runs; the report says the wide one would fit."""
    chooser = Chooser(ladder({0.5: 1.0, 1.0: 2.5}))
    run(chooser, 100, steady(1.0))
    run(chooser, 30, steady(3.0))
    stuck = run(
        chooser, RULES.longest + 100, lambda width: 2.9 if width == 0.5 else QUIET_MS[width]
    )
    assert stuck[50].point.width == 0.5 and stuck[-1].point.width == 1.0


def test_a_report_of_a_noisy_machine_does_not_hide_that_narrow_is_fast() -> None:
    """It has the narrow one slower than the wide one; under load the narrow one runs at once."""
    chooser = Chooser(ladder({0.5: 9.0, 0.75: 8.0, 1.0: 2.5}))
    quiet = run(chooser, 100, steady(1.0))
    assert {choice.point.width for choice in quiet} == {1.0}
    loaded = run(chooser, 100, steady(3.0))
    assert {choice.point.width for choice in loaded[2:] if choice.reason != "probe"} == {0.5}
    # Its own latency is known by then: it fits.
    assert loaded[-1].reason == "fits" and loaded[-1].expected_ms == pytest.approx(3.0)


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
        {"spare": 20}, {"spare": -1}, {"calm": 0}, {"calm": 2000}, {"margin": math.nan},
        {"margin": -0.1}, {"min_gain": 2.0},
    ],
)  # fmt: skip
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected"):
        Rules(**wrong)  # type: ignore[arg-type]
