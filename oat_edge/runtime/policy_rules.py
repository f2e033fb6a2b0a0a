"""Which operating point the next request gets: decisions only, no engine and no clock.

`Chooser.choose` looks, `Chooser.observe` learns. The rules:

- Of the points (width, λ) the one that is right in time most often is taken, as far as can be told:
  P(in time) · ((1 - threat)·SA + threat·RA), accuracies from the report, P from what was seen
  (`policy_latency`).
- Requests that wait share what is left of the deadline: with k behind it, a request is in time if
  it takes 1/(1 + k) of that. One request leaves k to chance, so P is the mean of two: with those
  that wait now, and with as many as waited during the last requests. The first reacts at once, the
  second keeps a width from being taken whenever the queue that it makes happens to be empty.
- If no width is likely to be in time with those that wait now, the fastest runs: the queue shrinks.
- A width that has not run lately is taken to be at most as good as the machine was with all
  widths. What it did itself holds for `calm` requests and is forgotten then: from there the machine
  speaks for it alone. So it returns when the machine has calmed down, as a probe; if it is left
  again soon, its own requests count for twice as long, up to `longest`. What slows down this width
  alone costs at last a few requests in `longest`.
- No width is taken to be slower than a wider one: it computes less, whatever a noisy machine says.
- The last point stays while another one promises less than `min_gain` more.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from oat_edge.errors import InputError
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime.policy_figures import Setting, WidthFigures
from oat_edge.runtime.policy_latency import WidthLatency, Window, reported

# A stay that was this many times as long as the wait before it was a success.
LONG_STAY = 4
# Below this nobody would bet on a request.
LIKELY = 0.5
# Many in a queue are as bad as more; bounds the work of a decision.
MOST_WAITING = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How cautious a policy is. Lengths are in requests."""

    window: int = 64
    """Requests that the probability is taken from."""
    recent: int = 8
    """The last of these, which end the use of a width at once."""
    spare: int = 1
    """Slow requests of the recent ones that are taken for accidents."""
    queue: int = 32
    """Requests whose queue behind them is taken for usual."""
    calm: int = 20
    """From leaving a width to forgetting what it did."""
    longest: int = 1000
    """Most of such waits. A width that did not run for so long is judged by the report."""
    min_gain: float = 0.01
    """Expected share right in time for which the last point is given up. Less is below what
    accuracies are known to, and images would change their class for nothing."""

    def __post_init__(self) -> None:
        if not 0 <= self.spare < self.recent <= self.window:
            raise InputError(
                f"spare is {self.spare}, recent {self.recent}, window {self.window}: expected "
                "0 <= spare < recent <= window"
            )
        if self.queue < 1:
            raise InputError(f"queue is {self.queue}: expected 1 or more")
        if not 1 <= self.calm <= self.longest:
            raise InputError(f"calm is {self.calm}: expected 1 to longest, {self.longest}")
        if not 0.0 <= self.min_gain <= 1.0:
            raise InputError(f"min_gain is {self.min_gain}: expected a share in [0, 1]")


Reason = Literal["fits", "probe", "nothing fits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """An operating point for one request, and why."""

    point: OperatingPoint
    reason: Reason
    """ "fits": the best, as far as is known. "probe": the same of a width wider than the last,
    of whose own requests nothing is known or all is forgotten. "nothing fits": the fastest width;
    none is likely to serve this request and those that wait in time."""
    expected_ms: float
    """What the request is predicted to take at most, nearly always."""
    expected_accuracy: float
    """At `threat`, by the report."""
    in_time: float
    """Probability that the rules count with; with the queue, so it may well be too low."""
    deadline_ms: float
    """Infinity: there is none."""
    threat: float
    batch: int
    waiting: int

    @property
    def right_in_time(self) -> float:
        """What is maximised."""
        return self.in_time * self.expected_accuracy


class Chooser:
    """The state of a policy. Not thread-safe: `Policy` takes care of that."""

    def __init__(self, figures: Sequence[WidthFigures], rules: Rules | None = None) -> None:
        """figures: one or more widths."""
        self._rules = rules or Rules()
        growing = sorted(figures, key=lambda one: one.width)
        self._widths = {one.width: _Width(one, self._rules) for one in growing}
        self._machine = _window(self._rules)
        self._queues = deque([0], maxlen=self._rules.queue)
        self._now = 0
        self._last: OperatingPoint | None = None

    @property
    def widths(self) -> tuple[float, ...]:
        """Widths that there are, growing."""
        return tuple(self._widths)

    def predicted_ms(self, batch: int = 1) -> dict[float, float]:
        """By width, what a request of `batch` images is predicted to take at most."""
        predicted_ms: dict[float, float] = {}
        wider_ms = math.inf
        for width, state in reversed(self._widths.items()):
            level = state.latency.window.level(self._machine.level(1.0))
            wider_ms = min(state.latency.unit_ms(batch) * level, wider_ms)
            predicted_ms[width] = wider_ms
        return predicted_ms

    def choose(
        self,
        *,
        deadline_ms: float = math.inf,
        threat: float = 1.0,
        batch: int = 1,
        waiting: int = 0,
    ) -> Choice:
        """The point for a request as things stand; changes nothing.

        deadline_ms: what is left, above 0 if there is hope. threat: in [0, 1]. batch: images of
        the request. waiting: requests behind it that are there already.
        """
        waiting = min(waiting, MOST_WAITING)
        usual = Counter(self._queues).items()
        queues = {waiting, *self._queues}
        chances = {k: self._chances(batch, deadline_ms / (1 + k)) for k in queues}
        in_time = {
            width: (sum(num * chances[k][width] for k, num in usual) / len(self._queues) + chance)
            / 2
            for width, chance in chances[waiting].items()
        }
        reason: Reason = "fits"
        if max(chances[waiting].values()) < LIKELY:
            width, reason = self.widths[0], "nothing fits"
            setting = self._widths[width].best(threat)
        else:
            width, setting = self._best(in_time, threat)
            last_width = self._last.width if self._last else math.inf
            if width > last_width and not len(self._widths[width].latency.window):
                reason = "probe"
        return Choice(
            point=OperatingPoint(width, setting.lam),
            reason=reason,
            expected_ms=self.predicted_ms(batch)[width],
            expected_accuracy=setting.expected(threat),
            in_time=in_time[width],
            deadline_ms=deadline_ms,
            threat=threat,
            batch=batch,
            waiting=waiting,
        )

    def observe(self, choice: Choice, latency_ms: float) -> None:
        """Learn what the request of this choice took, from its beginning on the engine."""
        self._now += 1
        state = self._widths[choice.point.width]
        self._machine.add(state.latency.see(choice.batch, latency_ms))
        self._queues.append(choice.waiting)
        self._last = choice.point
        state.last_run = self._now
        state.stay += 1
        for other in self._widths.values():
            rested = self._now - other.last_run
            if rested >= other.wait and len(other.latency.window):
                other.forget(self._rules)
            elif rested >= self._rules.longest:
                other.by_report = True

    def _chances(self, batch: int, limit_ms: float) -> dict[float, float]:
        """By width, the probability that a request takes `limit_ms` at most."""
        found: dict[float, float] = {}
        wider = 0.0
        for width, state in reversed(self._widths.items()):
            units = limit_ms / state.latency.unit_ms(batch)
            report = reported(units)
            machine = self._machine.in_time(units, report)
            chance = state.latency.window.in_time(units, report if state.by_report else machine)
            if self._now - state.last_run >= self._rules.recent and not state.by_report:
                chance = min(chance, machine)
            found[width] = wider = max(chance, wider)
        return found

    def _best(self, in_time: Mapping[float, float], threat: float) -> tuple[float, Setting]:
        """The point that is right in time most often, or the last one if that is about as good."""
        best = {width: state.best(threat) for width, state in self._widths.items()}
        width = max(
            best,
            # Equal: rather robust than not, rather narrow than wide.
            key=lambda one: (in_time[one] * best[one].expected(threat), best[one].robust, -one),
        )
        if (last := self._last) is not None:
            least = in_time[width] * best[width].expected(threat) - self._rules.min_gain
            for setting in self._widths[last.width].figures.settings:
                same = setting.lam == last.lam
                if same and in_time[last.width] * setting.expected(threat) >= least:
                    return last.width, setting
        return width, best[width]


def _window(rules: Rules) -> Window:
    return Window(rules.window, rules.recent, rules.spare)


class _Width:
    """What a chooser keeps of one width. Places are counted in requests."""

    __slots__ = ("_best", "by_report", "figures", "last_run", "latency", "stay", "wait")

    def __init__(self, figures: WidthFigures, rules: Rules) -> None:
        self.figures = figures
        self.latency = WidthLatency(figures.quiet_ms, _window(rules))
        self.by_report = False
        """Whether what was not seen is believed of the report, not of the machine."""
        self.last_run = 0
        self.stay = 0
        """Requests it ran since its own ones were forgotten."""
        self.wait = rules.calm
        """Requests of other widths until they are."""
        self._best = (math.nan, figures.settings[0])

    def forget(self, rules: Rules) -> None:
        """What it did itself; the next time later, unless it ran for long."""
        long = self.stay >= LONG_STAY * self.wait
        self.wait = rules.calm if long else min(2 * self.wait, rules.longest)
        self.stay = 0
        self.by_report = False
        self.latency.window.clear()

    def best(self, threat: float) -> Setting:
        """The setting with the highest expected accuracy; of equals a robust one, then small λ."""
        if self._best[0] != threat:  # most requests come with the threat of the one before
            self._best = (
                threat,
                max(
                    self.figures.settings,
                    key=lambda one: (one.expected(threat), one.robust, -one.lam),
                ),
            )
        return self._best[1]
