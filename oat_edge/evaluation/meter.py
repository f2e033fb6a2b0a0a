"""Progress of an evaluation, counted in the passes through the network that it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[float, float, str], None]  # done, total, what is being done


def silent(done: float, total: float, label: str) -> None:
    """No progress."""


class Meter:
    """Turns passes through a network into a share of all the work.

    total: cost of all parts to come, in any unit. A part may make fewer passes than `passes`:
    images that are fooled early need no more.
    """

    def __init__(self, progress: Progress, total: float) -> None:
        self._progress = progress
        self._total = total
        self._done = 0.0
        self._part = (0.0, 1)
        self._label = ""
        self._count = 0

    def begin(self, label: str, cost: float, passes: int) -> None:
        """Start a part."""
        self._label, self._part, self._count = label, (cost, passes), 0
        self._tell(0.0)

    def end(self) -> None:
        """The part is done, whatever number of passes it made."""
        self._done += self._part[0]
        self._part = (0.0, 1)
        self._tell(0.0)

    def tick(self) -> None:
        """One more pass of the present part."""
        self._count += 1
        cost, passes = self._part
        self._tell(cost * min(self._count / passes, 1.0))

    def _tell(self, more: float) -> None:
        # A cell that was there at first and is gone makes more work than was counted.
        self._progress(min(self._done + more, self._total), self._total, self._label)

    def counted(self, function: Callable[[T], T]) -> Callable[[T], T]:
        """The same function, whose calls are passes of the present part."""

        def call(argument: T) -> T:
            self.tick()
            return function(argument)

        return call
