"""A policy on simulated machines whose load changes: does it settle, leave in time, come back?"""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.runtime.policy_rules import LONG_STAY, Chooser, Rules
from tests.runtime.policy_machines import (
    QUIET_MS,
    RULES,
    ladder,
    noisy,
    probes,
    run,
    steady,
    switches,
)


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
    usual, num_usual = Counter(choice.point for choice in settled).most_common(1)[0]
    # A trial of a width that is slow by itself takes a few requests.
    assert num_usual >= 0.9 * len(settled)
    settled = [choice for choice in settled if choice.point == usual]
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
    # A few slow ones of each width that is too slow, and it is out.
    assert min(choice.point.width for choice in during[: RULES.recent]) < 1.0
    rest = during[2 * RULES.recent :]
    assert not [c for c in rest if 0.8 * load * QUIET_MS[c.point.width] > 3.0]
    after = run(chooser, RULES.longest, quiet)
    widths = [choice.point.width for choice in after]
    back = widths.index(1.0)
    assert back <= RULES.window + RULES.calm
    assert set(widths[back + 1 :]) == {1.0}


def test_after_a_long_stay_it_is_back_in_a_window_and_a_request() -> None:
    chooser = Chooser(ladder())
    run(chooser, 100, steady(1.0))
    during = run(chooser, 60, steady(3.0))
    assert {choice.point.width for choice in during[RULES.recent :]} == {0.5}
    after = run(chooser, 2 * RULES.window, steady(1.0))
    first = next(i for i, choice in enumerate(after) if choice.point.width == 1.0)
    assert first <= RULES.window + 1
    assert after[first].reason == "probe" and after[first + 1].reason == "fits"


@given(st.integers(0, 63), st.floats(1.5, 100.0))
def test_a_lone_slow_request_is_an_accident(place: int, slow: float) -> None:
    chooser = Chooser(ladder())
    run(chooser, RULES.window, steady(1.0))  # without evidence, one slow request says a lot
    following = itertools.cycle([2.5] * place + [2.5 * slow] + [2.5] * (RULES.window - 1 - place))
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
    loaded = run(chooser, 1000, steady(3.0))
    # Short trials of the others, ever rarer: by the report's units the machine looks fast.
    rest = [choice.point.width for choice in loaded[2 * RULES.recent :]]
    assert sum(width != 0.5 for width in rest) <= 0.03 * len(rest)
    # Its own latency is known by then: it fits.
    assert loaded[-1].reason == "fits" and loaded[-1].expected_ms == pytest.approx(3.0)
