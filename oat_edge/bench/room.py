"""Whether memory holds one more process beside those that a bench has open.

On a Jetson the GPU's memory is the board's: when it ends, the system kills what it likes.
"""

from __future__ import annotations

import re

from oat_edge.device.system import System

MEMINFO = "proc/meminfo"
# Its first requests make a process grow: arenas, workspaces, CUDA graphs.
GROWTH = 2.0
# Of all memory; what else runs must live on.
RESERVE = 0.1


class Room:
    """Made before the first process is opened, and told of each."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._before_kb = self._read("MemAvailable")
        self._reserve_kb = RESERVE * (self._read("MemTotal") or 0)
        self._num = 0

    def opened(self) -> None:
        """One more is open."""
        self._num += 1

    def for_another(self) -> bool:
        """Whether one more fits, if all grow as they may; the first always does.

        Where memory cannot be read there is room.
        """
        now_kb = self._read("MemAvailable")
        if now_kb is None or self._before_kb is None or not self._num:
            return True
        each_kb = max(self._before_kb - now_kb, 0) / self._num
        to_come_kb = (GROWTH - 1) * self._num * each_kb + GROWTH * each_kb
        return now_kb - to_come_kb > self._reserve_kb

    def _read(self, name: str) -> int | None:
        found = re.search(rf"^{name}:\s*(\d+) kB", self._system.read(MEMINFO) or "", re.MULTILINE)
        return int(found.group(1)) if found else None
