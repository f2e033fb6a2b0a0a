"""Which operating point the next request gets: decisions only, no engine and no clock.

`Chooser.choose` looks, `Chooser.observe` learns. The rules:

- A width fits if it is predicted to meet the deadline: its unit for this batch times its level
  (`policy_latency`). Of the points (width, λ) that fit, the one with the highest expected accuracy
  is taken: (1 - threat)·SA + threat·RA, from the report. If none fits, the fastest width is.
- Slow requests raise the level of their width at once, and so end its use. From then on nobody
  sees it, so its level says nothing of when to come back. The *machine's* level, over the last
  requests of any width, does: if the width would fit at that level with a margin, one request is
  sent to it as a probe, which brings it back or not. It comes back on probation: until its window
  is full, one slow request ends its use.
- After a width is left, the first probe waits `calm` requests. Each failure doubles the wait, up
  to `longest`: what slows down this width alone costs at last one request in `longest`.
- A width that has not run lately is taken to be at least as slow as the machine is now.
- No width is taken to be slower than a wider one: it computes less, whatever a noisy machine says.

So the width follows from levels and the request alone: a looser deadline never gives less expected
accuracy, and requests with different deadlines do not disturb each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from oat_edge.errors import InputError
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime.policy_figures import Setting, WidthFigures
from oat_edge.runtime.policy_latency import WidthLatency, Window

# A stay that was this many times as long as the wait before it was a success.
LONG_STAY = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How cautious a policy is. Lengths are in requests."""

    window: int = 20
    """Requests that a level is taken from."""
    spare: int = 1
    """Slow requests in a window that are taken for accidents."""
    margin: float = 0.1
    """What a probe must have in hand, as a share of the predicted latency."""
    calm: int = 20
    """From leaving a width to the first probe."""
    longest: int = 1000
    """Most between two probes. A width that waited for so long is probed even if the machine
    looks too slow for it, unless the report says that it never fits."""
    min_gain: float = 0.002
    """Expected accuracy, as a share, for which the last point is given up while it fits. Less
    is below what accuracies are known to, and images would change their class for nothing."""

    def __post_init__(self) -> None:
        if not 0 <= self.spare < self.window:
            raise InputError(f"spare is {self.spare}: expected 0 to window - 1, {self.window - 1}")
        if not 1 <= self.calm <= self.longest:
            raise InputError(f"calm is {self.calm}: expected 1 to longest, {self.longest}")
        if not (0.0 <= self.margin < math.inf and 0.0 <= self.min_gain <= 1.0):
            raise InputError(
                f"margin is {self.margin}, min_gain {self.min_gain}: expected margin >= 0 and "
                "min_gain in [0, 1]"
            )


Reason = Literal["fits", "probe", "nothing fits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """An operating point for one request, and why."""

    point: OperatingPoint
    reason: Reason
    """ "fits": the best of the widths that are predicted to meet the deadline. "probe": predicted
    to be late by its own last figures, but the machine has become faster since. "nothing fits":
    the fastest width, late all the same."""
    expected_ms: float
    """What the request is predicted to take at most, nearly always."""
    expected_accuracy: float
    """At `threat`, by the report."""
    deadline_ms: float
    """Infinity: there is none."""
    threat: float
    batch: int


class Chooser:
    """The state of a policy. Not thread-safe: `Policy` takes care of that."""

    def __init__(self, figures: Sequence[WidthFigures], rules: Rules | None = None) -> None:
        """figures: one or more widths."""
        self._rules = rules or Rules()
        growing = sorted(figures, key=lambda one: one.width)
        self._widths = {one.width: _Width(one, self._rules) for one in growing}
        self._machine = Window(self._rules.window, self._rules.spare)
        self._now = 0
        self._last: OperatingPoint | None = None

    @property
    def widths(self) -> tuple[float, ...]:
        """Widths that there are, growing."""
        return tuple(self._widths)

    def predicted_ms(self, batch: int = 1) -> dict[float, float]:
        """By width, what a request of `batch` images is predicted to take."""
        predicted_ms: dict[float, float] = {}
        wider_ms = math.inf
        for width, state in reversed(self._widths.items()):
            own_ms = state.latency.unit_ms(batch) * state.latency.window.level
            if self._now - state.last_run >= self._rules.window:
                now_ms = state.latency.unit_ms(batch) * self._machine.level
                own_ms = max(own_ms, now_ms)
            # Ties are kept: where nothing fits, the narrowest is the fastest.
            predicted_ms[width] = wider_ms = min(own_ms, wider_ms)
        return predicted_ms

    def choose(
        self, *, deadline_ms: float = math.inf, threat: float = 1.0, batch: int = 1
    ) -> Choice:
        """The point for a request as things stand; changes nothing.

        deadline_ms: above 0. threat: in [0, 1]. batch: images of the request.
        """
        predicted_ms = self.predicted_ms(batch)
        fitting = {width for width, ms in predicted_ms.items() if ms <= deadline_ms}
        probes = {
            width
            for width, state in self._widths.items()
            if width not in fitting and self._may_probe(state, batch, deadline_ms)
        }
        fastest = min(predicted_ms, key=lambda width: (predicted_ms[width], width))
        allowed = (fitting or {fastest}) | probes
        best = {width: self._widths[width].best(threat) for width in allowed}
        width = max(
            allowed,
            # Equal accuracy: no probe, rather robust than not, rather narrow than wide.
            key=lambda one: (
                best[one].expected(threat), one not in probes, best[one].robust, -one,
            ),
        )  # fmt: skip
        width, setting = self._stay(width, best[width], allowed - probes, threat)
        probe = width in probes
        unit_ms = self._widths[width].latency.unit_ms(batch)
        return Choice(
            point=OperatingPoint(width, setting.lam),
            reason="probe" if probe else "fits" if width in fitting else "nothing fits",
            expected_ms=unit_ms * self._machine.level if probe else predicted_ms[width],
            expected_accuracy=setting.expected(threat),
            deadline_ms=deadline_ms,
            threat=threat,
            batch=batch,
        )

    def observe(self, choice: Choice, latency_ms: float) -> None:
        """Learn what the request of this choice took, from its beginning on the engine."""
        self._now += 1
        state = self._widths[choice.point.width]
        batch, deadline_ms = choice.batch, choice.deadline_ms
        passed = latency_ms * (1.0 + self._rules.margin) <= deadline_ms
        back = choice.reason == "probe" and passed
        self._machine.add(state.latency.see(batch, latency_ms, anew=back))
        state.last_run = self._now
        state.stay += 1
        if choice.reason == "probe":
            state.left = self._now
            if not passed:
                state.wait = min(2 * state.wait, self._rules.longest)
                return
            state.stay = 0
        self._last = choice.point
        now_ms = state.latency.unit_ms(batch) * state.latency.window.level
        if choice.reason != "nothing fits" and now_ms > deadline_ms:
            long = state.stay >= LONG_STAY * state.wait
            state.wait = self._rules.calm if long else min(2 * state.wait, self._rules.longest)
            state.left = self._now

    def _may_probe(self, state: _Width, batch: int, deadline_ms: float) -> bool:
        waited = self._now - state.left
        if waited < state.wait:
            return False
        unit_ms = state.latency.unit_ms(batch)
        if unit_ms * self._machine.level * (1.0 + self._rules.margin) <= deadline_ms:
            return True
        return waited >= self._rules.longest and unit_ms <= deadline_ms

    def _stay(
        self, width: float, best: Setting, usable: Iterable[float], threat: float
    ) -> tuple[float, Setting]:
        """The last point, if it can be used and is about as good as the best."""
        last = self._last
        if last is not None and last.width in usable:
            for setting in self._widths[last.width].figures.settings:
                gain = best.expected(threat) - setting.expected(threat)
                if setting.lam == last.lam and gain <= self._rules.min_gain:
                    return last.width, setting
        return width, best


class _Width:
    """What a chooser keeps of one width. Places are counted in requests."""

    __slots__ = ("_best", "figures", "last_run", "latency", "left", "stay", "wait")

    def __init__(self, figures: WidthFigures, rules: Rules) -> None:
        self.figures = figures
        self.latency = WidthLatency(figures.quiet_ms, window=rules.window, spare=rules.spare)
        self.last_run = -rules.window
        self.left = 0
        """Place at which it was left or probed last."""
        self.stay = 0
        """Requests it ran since a probe brought it back."""
        self.wait = rules.calm
        """Requests from `left` to the next probe."""
        self._best = (math.nan, figures.settings[0])

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
