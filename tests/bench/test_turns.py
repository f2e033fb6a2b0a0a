"""Who has its turn when, what a failure costs, and what is not repeated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.bench.latency import NS
from oat_edge.bench.turns import take_turns
from oat_edge.errors import DependencyError
from oat_edge.runtime.child import ChildFailedError
from tests.bench.turns import FakeTime, Local, config, measure

pytestmark = pytest.mark.usefixtures("frozen_heap")


def test_configurations_take_turns_in_rounds():
    time = FakeTime()
    measure([time.measurable(name, 10_000_000) for name in "ABC"], config(), clock=time)
    turns = [time.calls[0][0]]
    for name, _ in time.calls:
        if name != turns[-1]:
            turns.append(name)
    assert "".join(turns) == "ABC" * (1 + 4)  # warm-up, then four rounds


def test_requests_right_after_a_switch_are_not_recorded():
    """The first request after another configuration ran is slow (cold caches)."""
    time = FakeTime()

    def cold_first(name):
        def cost_ns(_, __):
            previous = time.calls[-2][0] if len(time.calls) > 1 else None
            return 1_000_000 if previous == name else 50_000_000

        return cost_ns

    samples = measure(
        [time.measurable(name, cold_first(name)) for name in "AB"],
        config(rewarm_s=0.01),
        clock=time,
    )
    assert all((one.latency_ns == 1_000_000).all() for one in samples)


def test_progress_counts_real_time_and_foresees_slow_networks():
    time = FakeTime()
    reports = []
    slow = time.measurable("slow", 100_000_000)  # 100 requests take 10 s, not min_seconds
    fast = time.measurable("fast", 1_000_000)
    measure([slow, fast], config(), clock=time, progress=lambda *call: reports.append(call))
    done_s = [report[0] for report in reports]
    assert done_s == sorted(done_s)
    assert reports[-1][0] == reports[-1][1] == time.now_ns / NS
    after_warm_up = next(total for _, total, label in reports if label == "latency slow")
    assert after_warm_up == pytest.approx(time.now_ns / NS, rel=0.05)


def test_nothing_to_measure_gives_nothing():
    assert measure([], config(), clock=FakeTime()) == []


def sources_of(time, names="ABC", **changes):
    plan = config(**changes)
    return [Local(time.measurable(name, 10_000_000), plan, time) for name in names], plan


class Failing(Local):
    """Its turns fail from one on."""

    def __init__(self, source, at, error):
        vars(self).update(vars(source))
        self._left, self._error = at, error

    def part(self, first):
        if self._left == 0:
            raise self._error
        self._left -= 1
        return super().part(first)


@pytest.mark.parametrize("error", [ChildFailedError("lost"), DependencyError("out of memory")])
@pytest.mark.parametrize("at", range(4))
def test_a_source_that_fails_costs_the_others_nothing(error, at):
    time = FakeTime()
    (a, b, c), plan = sources_of(time)
    told, kept = [], []
    found = take_turns(
        [a, Failing(b, at, error), c],
        plan,
        keep=lambda name, turn, _: kept.append((name, turn)),
        failed=lambda *call: told.append(call),
        clock=time,
    )
    assert told == [("B", error)] and set(found) == {"A", "C"}
    assert all(len(one.latency_ns) == 100 for one in found.values())
    # Its finished parts were kept all the same, in the order in which they were taken.
    ends = [(name, turn) for turn in range(4) for name in "ABC" if name != "B" or turn < at]
    assert kept == ends


def test_without_anybody_to_tell_a_failure_is_raised():
    time = FakeTime()
    (a,), plan = sources_of(time, "A")
    with pytest.raises(ChildFailedError, match="lost"):
        take_turns([Failing(a, 2, ChildFailedError("lost"))], plan, clock=time)


@settings(max_examples=25, deadline=None)
@given(have=st.tuples(*[st.integers(0, 4)] * 3))
def test_parts_of_an_earlier_run_are_not_repeated(have):
    time = FakeTime()
    sources, plan = sources_of(time, min_seconds=0.0)
    earlier = {
        source.name: [source.part(25 * turn) for turn in range(num)]
        for source, num in zip(sources, have, strict=True)
    }
    time.calls.clear()
    kept = []
    found = take_turns(
        sources,
        plan,
        have=earlier,
        keep=lambda name, turn, part: kept.append((name, turn, len(part.latency_ns))),
        clock=time,
    )
    wanted = [
        (source.name, turn, 25)
        for turn in range(4)
        for source, num in zip(sources, have, strict=True)
        if turn >= num
    ]
    assert kept == wanted
    # What was finished is not even warmed up.
    assert {name for name, _ in time.calls} == {name for name, *_ in wanted}
    for name, samples in found.items():
        assert len(samples.latency_ns) == 100
        before = [part.latency_ns for part in earlier[name]]
        assert np.array_equal(samples.latency_ns[: 25 * len(before)], np.concatenate([*before, []]))


def test_lambda_goes_on_where_an_earlier_run_stopped():
    time = FakeTime()
    plan = config(min_seconds=0.0)
    cost_ns = lambda _, lam: (lam + 1) * 1_000_000  # noqa: E731
    source = Local(time.measurable("a", cost_ns, num_lambdas=3), plan, time)
    first = source.part(0)
    found = take_turns([source], plan, have={"a": [first]}, clock=time)["a"]
    assert np.array_equal(found.lambda_index, np.arange(100) % 3)
    assert np.array_equal(found.latency_ns, (found.lambda_index + 1) * 1_000_000)
