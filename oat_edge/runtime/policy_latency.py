"""How likely a width is in time, as far as is known: the report's figures, and what is seen.

Latencies are counted in *units*: what such a request nearly always took at most while the bench
measured it. A `Window` keeps the units of the last requests and tells which share of them would
have been in time. So that little evidence is no certainty, a belief from elsewhere counts like
`WEIGHT` further requests: for a width it is what the machine did lately with all widths, for the
machine the report.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Mapping
from itertools import pairwise

WEIGHT = 4.0
NEARLY_ALL = 0.95
# Requests after which a batch that was not measured counts as known.
LEARN = 20
# The report has one figure, p95; nearly all lies between half of it and twice.
CURVE = ((0.5, 0.0), (1.0, 0.95), (2.0, 1.0))


def reported(units: float) -> float:
    """Probability that a request takes `units` at most on the device as the bench found it."""
    if units <= CURVE[0][0]:
        return 0.0
    for (left, low), (right, high) in pairwise(CURVE):
        if units < right:
            return low + (high - low) * (units - left) / (right - left)
    return 1.0


class Window:
    """The units of the last `size` requests.

    The long memory is for small differences. The last `recent`, of which `spare` slow ones are
    taken for accidents, end a width's use soon if the machine becomes slow.
    """

    def __init__(self, size: int, recent: int, spare: int) -> None:
        self._recent, self._spare = recent, spare
        self._values: deque[float] = deque(maxlen=size)
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._values)

    def add(self, units: float) -> None:
        """Take one request in; the oldest of a full window goes."""
        if len(self._values) == self._values.maxlen:
            del self._sorted[bisect_left(self._sorted, self._values[0])]
        self._values.append(units)
        insort(self._sorted, units)

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()
        self._sorted.clear()

    def level(self, otherwise: float) -> float:
        """Units that nearly all requests took at most; `otherwise` before the first."""
        return self._sorted[int(NEARLY_ALL * (len(self) - 1))] if self._sorted else otherwise

    def in_time(self, units: float, belief: float) -> float:
        """Probability of `units` at most: the lower of that by all and that by the last few.

        belief: the probability without this window.
        """
        num = len(self._values)
        if not num:
            return belief
        met = bisect_right(self._sorted, units)
        by_all = (met + WEIGHT * belief) / (num + WEIGHT)
        if num - met <= self._spare:  # so few are late that the last few cannot matter
            return by_all
        late = sum(self._values[-i] > units for i in range(1, min(num, self._recent) + 1))
        return min(by_all, 1.0 - max(0, late - self._spare) / self._recent)


class WidthLatency:
    """One width: its units by batch, and the window of its own requests."""

    def __init__(self, quiet_ms: Mapping[int, float], window: Window) -> None:
        """quiet_ms: by images per request, what the bench found; one batch or more."""
        self._measured = dict(quiet_ms)
        self._unit_ms = dict(quiet_ms)
        self._learning: dict[int, list[float]] = {}
        self._learnt: set[int] = set()
        self.window = window

    def unit_ms(self, batch: int) -> float:
        """Milliseconds that count as 1 for requests of this many images."""
        unit_ms = self._unit_ms.get(batch)
        if unit_ms is None:
            # An upper bound: a larger batch takes no less, and one n times as large at most n
            # times as long, as fixed costs are shared.
            unit_ms = min(ms * max(1.0, batch / one) for one, ms in self._measured.items())
            self._unit_ms[batch] = unit_ms
        return unit_ms

    def see(self, batch: int, latency_ms: float) -> float:
        """Take one request in; returns it in units."""
        units = latency_ms / self.unit_ms(batch)
        self.window.add(units)
        if batch not in self._measured:
            self._learn(batch, latency_ms)
        return units

    def _learn(self, batch: int, latency_ms: float) -> None:
        """Replace the bound of a batch that the report lacks by what its calmest run took."""
        seen = self._learning.setdefault(batch, [])
        seen.append(latency_ms)
        if len(seen) < LEARN:
            return
        quiet_ms = sorted(seen)[-2:][0]  # all but one, as p95 is meant
        if batch in self._learnt:
            quiet_ms = min(quiet_ms, self._unit_ms[batch])
        if quiet_ms != self._unit_ms[batch]:
            self.window.clear()  # it counted in other units
        self._unit_ms[batch] = quiet_ms
        self._learnt.add(batch)
        seen.clear()
