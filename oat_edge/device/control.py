"""Clocks and power mode, held for a bench on request and put back however it ends.

What a setting was is on disk before it is changed.  A process that could not put it back (kill -9,
a power cut) leaves that file, and the next bench puts it back.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from oat_edge.device.jetson import is_jetson
from oat_edge.device.settings import RESTORE, lock_clocks, set_power_mode
from oat_edge.device.system import System
from oat_edge.errors import DependencyError, InputError
from oat_edge.files import cache_dir, exclusive_lock, read_json, write_json

Say = Callable[[str], object]

# A new one at each start of the machine.
BOOT_ID = "proc/sys/kernel/random/boot_id"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held(
    system: System, *, lock_clocks: bool, power_mode: str | None, on_gpu: bool, say: Say
) -> Iterator[dict[str, Any]]:
    """Set the power mode, then fix the clocks; put both back in the reverse order at the end.

    They are put back after an error, Ctrl-C, SIGTERM and SIGHUP too.  power_mode: nvpmodel's name
    or number.  Yields {"set": {…}, "before": {…}} in words for the report, {} if nothing was asked
    for.  Raises `InputError` for what this machine cannot have and while another bench holds it,
    `DependencyError` without root, without a tool, or if a setting does not take.
    """
    if not lock_clocks and power_mode is None:
        yield {}
        return
    _check(system, power_mode)
    folder = _folder()
    with _alone(folder), _ending_signals() as signals:
        left = _Changed.load(system, folder)
        if left is not None:
            left.restore(say)
        changed = _Changed(system, folder)
        try:
            done = _set(changed, lock=lock_clocks, power_mode=power_mode, on_gpu=on_gpu)
            say(f"set for this bench: {', '.join(done.values())}")
            yield {"set": done, "before": dict(changed.was)}
        finally:
            # From here on a signal waits until everything is as it was.
            signals.wait = True
            changed.restore(say)


def restore_leftover(system: System, say: Say) -> None:
    """Put back what a bench that was killed has left; nothing while another one holds it."""
    folder = _folder()
    if system.recorded or not _record(folder).exists():
        return
    if os.geteuid() != 0:
        say(
            "clocks or the power mode were changed by a bench that still runs or was killed: if "
            "none runs, bench once with sudo, which puts them back"
        )
        return
    try:
        with _alone(folder):
            left = _Changed.load(system, folder)
            if left is not None:
                say(f"putting back what a killed bench has left: {', '.join(left.was.values())}")
                left.restore(say)
    except _BusyError:
        return  # the bench that holds it lives, and puts it back itself


class _Changed:
    """What changed settings were before: the same here and on disk."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system, self.folder = system, folder
        self.before: dict[str, Any] = {}
        self.was: dict[str, str] = {}
        """The same in words."""

    @classmethod
    def load(cls, system: System, folder: Path) -> _Changed | None:
        """What is on disk; None if that is nothing, or nothing that must be put back."""
        path, left = _record(folder), cls(system, folder)
        if not path.exists():
            return None
        try:
            state = read_json(path, what="record of settings", remedy="delete it")
            left.before, left.was = dict(state["before"]), dict(state["was"])
            same_start = state["boot_id"] == system.read(BOOT_ID)
        except (InputError, KeyError, TypeError, ValueError):
            same_start = False
        # Clocks and governors are fresh after a start; the power mode outlives it.
        kept = RESTORE if same_start else ("power_mode",)
        left.before = {name: left.before[name] for name in kept if name in left.before}
        left.was = {name: left.was.get(name, name) for name in left.before}
        if not left.before:
            path.unlink(missing_ok=True)
            return None
        return left

    def will(self, name: str, before: Any, *, was: str) -> None:
        """Note what a setting is, before it is changed."""
        self.before[name], self.was[name] = before, was
        self._save()

    def restore(self, say: Say) -> None:
        """Put everything back, last change first; what fails is said, and stays on disk."""
        for name in [name for name in reversed(RESTORE) if name in self.before]:
            try:
                RESTORE[name](self.system, self.before[name])
            except (OSError, DependencyError) as error:
                say(f"not put back: {self.was[name]} ({error}); the next bench tries again")
            else:
                del self.before[name]
                self._save()

    def _save(self) -> None:
        path = _record(self.folder)
        if self.before:
            boot_id = self.system.read(BOOT_ID)
            write_json(path, {"boot_id": boot_id, "before": self.before, "was": self.was})
        else:
            path.unlink(missing_ok=True)


def _check(system: System, power_mode: str | None) -> None:
    if system.recorded:
        raise InputError(
            f"{system.root} is a recorded tree, whose clocks and power mode cannot be set: leave "
            "out --lock-clocks and --power-mode"
        )
    if power_mode is not None and not is_jetson(system):
        raise InputError("--power-mode is for Jetsons, and this machine is none: leave it out")
    if os.geteuid() != 0:
        raise DependencyError(
            "--lock-clocks and --power-mode change settings of the machine, which takes root: "
            "sudo $(command -v oat-edge) bench …, or leave them out"
        )


def _set(changed: _Changed, *, lock: bool, power_mode: str | None, on_gpu: bool) -> dict[str, str]:
    done = {}
    # The mode first: it decides how high the clocks can be.
    if power_mode is not None:
        done["power_mode"] = set_power_mode(changed.system, power_mode, changed.will)
    if lock:
        done["clocks"] = lock_clocks(changed.system, changed.folder, changed.will, on_gpu=on_gpu)
    return done


class _BusyError(InputError):
    """Another bench holds the settings."""


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder, wait=False))
        except InputError:
            raise _BusyError(
                "another bench holds this machine's clocks or power mode: wait for it, or leave "
                "out --lock-clocks and --power-mode"
            ) from None
        yield


class _Ended(BaseException):
    """A signal asks the process to end; like KeyboardInterrupt no failure to be caught."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class _Signals:
    """The first signal that asks the process to end is raised; later ones wait for the end."""

    def __init__(self) -> None:
        self.wait = False
        self.late: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.wait:
            self.late = number
            return
        self.wait = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise _Ended(number)


@contextmanager
def _ending_signals() -> Iterator[_Signals]:
    """Let signals end the block as errors do, then have the effect that they would have had."""
    signals = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals  # only the main thread gets signals
        return
    # One that is ignored (nohup's SIGHUP) stays so; None: not set from Python.
    old = {
        number: handler
        for number in ENDING
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    ended: int | None = None
    try:
        for number in old:
            signal.signal(number, signals)
        yield signals
    except _Ended as error:
        ended = error.number
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        again = ended if ended is not None else signals.late
        if again is not None:
            os.kill(os.getpid(), again)
    if ended is not None:  # the signal's own handler let the process live
        raise SystemExit(128 + ended)


def _folder() -> Path:
    return cache_dir() / "control"


def _record(folder: Path) -> Path:
    return folder / "before.json"
