"""What a width's requests take, as far as is known: the report's figures times what is seen.

Latencies are counted in *units*: what such a request nearly always took at most while the bench
measured it. A *level* is how many units requests take now: the second largest of the last twenty.
Such a window is used instead of a running average of a quantile because its two times are plain:
two slow requests raise the level at once (one is taken for an accident), and it falls when they
have left the window, after twenty calm ones. With one in twenty above it, it is about the 95th
percentile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping


class Window:
    """The last `size` latencies in units; all but the `spare` largest count."""

    def __init__(self, size: int, spare: int) -> None:
        self._spare = spare
        # Before anything is seen, the report is believed.
        self._values = deque([1.0], maxlen=size)
        self._strict = False
        self.level = 1.0

    def add(self, units: float) -> None:
        """Take one latency in; the oldest of a full window goes."""
        values = self._values
        values.append(units)
        self._strict = self._strict and len(values) < (values.maxlen or 0)
        spare = 0 if self._strict else self._spare
        self.level = sorted(values)[max(-len(values), -1 - spare)]

    def start_again(self, units: float) -> None:
        """Forget all but this latency; until the window is full, one slow request counts."""
        self._values.clear()
        self._strict = True
        self.add(units)


class WidthLatency:
    """One width: its units by batch, and its level."""

    def __init__(self, quiet_ms: Mapping[int, float], *, window: int, spare: int) -> None:
        """quiet_ms: by images per request, what the bench found; one batch or more."""
        self._size, self._spare = window, spare
        self._measured = dict(quiet_ms)
        self._unit_ms = dict(quiet_ms)
        self._learning: dict[int, list[float]] = {}
        self._learnt: set[int] = set()
        self.window = Window(window, spare)

    def unit_ms(self, batch: int) -> float:
        """Milliseconds that count as 1 for requests of this many images."""
        unit_ms = self._unit_ms.get(batch)
        if unit_ms is None:
            # An upper bound: a larger batch takes no less, and one n times as large at most n
            # times as long, as fixed costs are shared.
            unit_ms = min(ms * max(1.0, batch / one) for one, ms in self._measured.items())
            self._unit_ms[batch] = unit_ms
        return unit_ms

    def see(self, batch: int, latency_ms: float, *, anew: bool = False) -> float:
        """Take one request in; returns it in units. anew: forget what was seen before."""
        units = latency_ms / self.unit_ms(batch)
        if anew:
            self.window.start_again(units)
        else:
            self.window.add(units)
        if batch not in self._measured:
            self._learn(batch, latency_ms)
        return units

    def _learn(self, batch: int, latency_ms: float) -> None:
        """Replace the bound of a batch that the report lacks by what its calmest window took."""
        seen = self._learning.setdefault(batch, [])
        seen.append(latency_ms)
        if len(seen) < self._size:
            return
        quiet_ms = sorted(seen)[-1 - self._spare]
        if batch in self._learnt:
            quiet_ms = min(quiet_ms, self._unit_ms[batch])
        self._unit_ms[batch] = quiet_ms
        self._learnt.add(batch)
        seen.clear()
