"""What changed settings were before, on disk, so that it outlives the process that changed them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from oat_edge.device.settings import RESTORE
from oat_edge.device.system import System
from oat_edge.errors import DependencyError, InputError
from oat_edge.files import read_json, write_json

NAME = "before.json"
# A new one at each start of the machine.
BOOT_ID = "proc/sys/kernel/random/boot_id"


class Changed:
    """What changed settings were before: the same here and on disk."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system, self.path = system, folder / NAME
        self.before: dict[str, Any] = {}
        self.was: dict[str, str] = {}
        """The same in words."""

    @classmethod
    def load(cls, system: System, folder: Path) -> Changed:
        """What is on disk and must be put back; empty if that is nothing. Writes nothing."""
        left = cls(system, folder)
        try:
            state = read_json(left.path, what="record of settings", remedy="delete it")
            before, was = dict(state["before"]), dict(state["was"])
            same_start = state["boot_id"] == system.read(BOOT_ID)
        except (InputError, KeyError, TypeError, ValueError):
            return left
        # Clocks and governors are fresh after a start; the power mode outlives it.
        kept = RESTORE if same_start else ("power_mode",)
        left.before = {name: before[name] for name in kept if name in before}
        left.was = {name: str(was.get(name, name)) for name in left.before}
        return left

    def will(self, name: str, before: Any, *, was: str) -> None:
        """Note what a setting is, before it is changed.

        What an earlier bench could not put back is the older "before", and stays.
        """
        older = self.before.get(name)
        if isinstance(older, dict) and isinstance(before, dict):  # such as one entry per core
            older = {**before, **older}
        noted = {**self.before, name: before if older is None else older}
        words = {**self.was, name: self.was.get(name, was)}
        # On disk first: what cannot be noted is not changed.
        self._write(noted, words)
        self.before, self.was = noted, words

    def restore(self, say: Callable[[str], object]) -> None:
        """Put everything back, last change first; what fails is said, and stays on disk."""
        for name in [name for name in reversed(RESTORE) if name in self.before]:
            try:
                RESTORE[name](self.system, self.before[name])
            except (OSError, DependencyError) as error:
                say(f"not put back: {self.was[name]} ({error}); the next bench tries again")
                continue
            del self.before[name]
            was = self.was.pop(name)
            if self.before:
                self._try_to(lambda: self._write(self.before, self.was), f"{was} is back", say)
        if not self.before:
            self._try_to(lambda: self.path.unlink(missing_ok=True), "all is put back", say)

    def _try_to(self, note: Callable[[], object], text: str, say: Callable[[str], object]) -> None:
        """A full disk must not keep what comes next from being put back."""
        try:
            note()
        except (OSError, InputError) as error:
            say(f"{text}, but {self.path} does not say so: {error}")

    def _write(self, before: dict[str, Any], was: dict[str, str]) -> None:
        boot_id = self.system.read(BOOT_ID)
        write_json(self.path, {"boot_id": boot_id, "before": before, "was": was})
        # Whatever root's umask: a bench of another user tells what it finds.
        self.path.chmod(0o644)
