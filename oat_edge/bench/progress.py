"""One progress bar over several stages whose lengths are only guessed, or extrapolated."""

from __future__ import annotations

import time
from collections.abc import Iterable

from oat_edge.bench.latency import NS, Clock, Progress


class Stages:
    """Turns the progress of each stage into that of the whole.

    guesses_s: seconds that each coming stage may take, in order. Reported to `progress` are
    seconds since the start, and these plus the estimate of what is left.
    """

    def __init__(
        self,
        progress: Progress | None,
        guesses_s: Iterable[float],
        *,
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        self._progress = progress
        self._coming_s = list(guesses_s)
        self._clock = clock
        self._start_ns = clock()

    def begin(self, label: str) -> Progress:
        """Start the next stage; returns the callback that it may report to."""
        guess_s = self._coming_s.pop(0)
        self._report(guess_s, label)
        return self._inner

    def expect(self, guesses_s: Iterable[float]) -> None:
        """Better guesses for the stages that are still to come."""
        self._coming_s = list(guesses_s)

    def finish(self) -> None:
        """Report that nothing is left."""
        self._coming_s.clear()
        self._report(0.0, "done")

    def _inner(self, done_s: float, total_s: float, label: str) -> None:
        self._report(total_s - done_s, label)

    def _report(self, left_s: float, label: str) -> None:
        if self._progress is not None:
            done_s = (self._clock() - self._start_ns) / NS
            self._progress(done_s, done_s + left_s + sum(self._coming_s), label)


class ImageCount:
    """Progress of a stage whose work is to show images to a network.

    The seconds left follow from the pace so far.
    """

    left: int
    """Images to come; may be corrected on the way."""
    shown: int

    def __init__(
        self,
        progress: Progress,
        label: str,
        *,
        left: int,
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        self.left, self.shown = left, 0
        self._progress = progress
        self._label = label
        self._clock = clock
        self._start_ns = clock()

    def show(self, num: int) -> None:
        """`num` images, one or more, were shown."""
        self.shown += num
        self.left = max(self.left - num, 0)
        done_s = (self._clock() - self._start_ns) / NS
        self._progress(done_s, done_s * (1 + self.left / self.shown), self._label)
