"""Clocks and power mode, held for a bench on request and put back however it ends.

What a setting was is on disk before it is changed.  A process that could not put it back (kill -9,
a power cut) leaves that file, and the next bench of root puts it back.  The settings are the
machine's, and so is the file: it does not lie in a user's folder.
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
from oat_edge.device.machine_files import make_state_dir, state_dir
from oat_edge.device.record import Changed
from oat_edge.device.settings import lock_clocks, set_power_mode
from oat_edge.device.system import System
from oat_edge.errors import DependencyError, InputError
from oat_edge.files import exclusive_lock

Say = Callable[[str], object]

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
    folder = make_state_dir()
    with _alone(folder), _ending_signals() as signals:
        changed = Changed.load(system, folder)
        changed.restore(say)  # what then is still in it is put back with the rest
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
    if system.recorded:
        return
    left = Changed.load(system, state_dir())
    if os.geteuid() != 0:
        if left.before:
            say(
                "clocks or the power mode were changed by a bench that still runs or was killed; "
                f"before: {', '.join(left.was.values())}; if none runs, bench once with sudo, "
                "which puts them back"
            )
        return
    if not left.path.exists():
        return
    try:
        with _alone(make_state_dir()):
            left = Changed.load(system, state_dir())  # as it is now that nobody else changes it
            if left.before:
                say(f"putting back what a killed bench has left: {', '.join(left.was.values())}")
            left.restore(say)
    except _BusyError:
        return  # the bench that holds it lives, and puts it back itself
    except DependencyError as error:
        say(f"what a killed bench has left is not put back: {error}")


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


def _set(changed: Changed, *, lock: bool, power_mode: str | None, on_gpu: bool) -> dict[str, str]:
    done = {}
    # The mode first: it decides how high the clocks can be.
    if power_mode is not None:
        done["power_mode"] = set_power_mode(changed.system, power_mode, changed.will)
    if lock:
        done["clocks"] = lock_clocks(
            changed.system,
            changed.path.parent,
            changed.will,
            on_gpu=on_gpu,
            keep_stored="clocks" in changed.before,
        )
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
