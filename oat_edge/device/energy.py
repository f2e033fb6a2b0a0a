"""Mean power of a span of time, from readings at uneven times. Numbers only.

n readings; all times in seconds on one clock, growing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

# A counter whose known part covers less of a span says nothing about the span.
MIN_COVERED = 0.5


def mean_of_watts(
    times_s: Float64, watts: Float64, start_s: float, end_s: float, *, averaging_s: float = 0.0
) -> tuple[float | None, int]:
    """Mean power of a span, and how many independent readings it rests on.

    times_s, watts: (n,), each reading the mean over the `averaging_s` before it.  Readings that
    still hold power from before the span are left out; without any the mean is None.
    """
    first_s = start_s + averaging_s
    inside = (times_s >= first_s) & (times_s <= end_s)
    times, values = times_s[inside], watts[inside]
    if not len(times):
        return None, 0
    # Between readings the power is taken as a line, before the first and after the last as level.
    area = float(np.sum((values[1:] + values[:-1]) * np.diff(times)) / 2)
    area += values[0] * (times[0] - first_s) + values[-1] * (end_s - times[-1])
    length_s = end_s - first_s
    mean = area / length_s if length_s > 0 else values[-1]
    return float(mean), _num_apart(times, averaging_s)


def mean_of_joules(
    times_s: Float64, joules: Float64, start_s: float, end_s: float
) -> tuple[float | None, int]:
    """Mean power of a span from an energy counter, and how many of its steps lie in the span.

    times_s, joules: (n,), also of the time around the span.  A counter that is renewed less often
    than it is read stands still in between: only readings with a new value count, and it is a line
    between them.  None where it is not known in at least half of the span, or went backwards.
    """
    steps = np.diff(joules)
    new = np.flatnonzero(steps) + 1
    times, values = times_s[new], joules[new]
    if len(times) < 2 or np.any(steps < 0):
        return None, 0
    low, high = max(start_s, float(times[0])), min(end_s, float(times[-1]))
    num = int(np.count_nonzero((times >= low) & (times <= high)))
    if num == 0 or high - low < MIN_COVERED * (end_s - start_s) or high <= low:
        return None, 0
    at_low, at_high = np.interp([low, high], times, values)
    return float(at_high - at_low) / (high - low), num


class Unwrapped:
    """A counter that starts again at 0 after `top`, made to grow for ever.

    It must be read more than once per turn.
    """

    def __init__(self, top: float | None) -> None:
        self._top = top
        self._turns = 0
        self._last: float | None = None

    def __call__(self, value: float) -> float:
        """The next reading, wraps undone; `OSError` if it fell and its top is not known."""
        if self._last is not None and value < self._last:
            if self._top is None:
                raise OSError("an energy counter went backwards, and its range is not known")
            self._turns += 1
        self._last = value
        return value + self._turns * (self._top or 0.0)


def _num_apart(times_s: Float64, averaging_s: float) -> int:
    """Readings that share no part of what they are means of."""
    num, last_s = 0, -np.inf
    for time_s in times_s:
        # Readings taken just as often as they are renewed must not fail by rounding.
        if time_s - last_s >= averaging_s * 0.999:
            num, last_s = num + 1, time_s
    return num
