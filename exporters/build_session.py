"""What Python does while TensorRT's C++ runs: its log, its progress, and how it is stopped."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from oat_edge.errors import BuildError, InputError
from oat_edge.runtime.trt_api import Library, make_logger
from oat_edge.runtime.trt_layers import LOGGED

MAX_ERRORS = 3
MAX_ERROR_LENGTH = 200


class Session:
    """What Python hears and says while the library runs.

    An exception must not pass through the library's C++ from a callback: it is kept, the build
    is cancelled, and `check` raises it afterwards. So is Ctrl-C, which Python would otherwise
    raise inside whichever callback comes next.
    """

    def __init__(
        self, library: Library, file: TextIO | None = None, path: Path | None = None
    ) -> None:
        self.library = library
        self.layers: str | None = None
        """The builder's list of layers, if it logs one."""
        self._errors: list[str] = []
        self._failure: BaseException | None = None
        self._file, self._path = file, path
        self._previous: Any = None
        self.logger = make_logger(library, self.write)

    def __enter__(self) -> Session:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGINT)
            if self._previous not in (None, signal.SIG_IGN):
                signal.signal(signal.SIGINT, lambda *_: self.stop(KeyboardInterrupt()))
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._previous not in (None, signal.SIG_IGN):
            signal.signal(signal.SIGINT, self._previous)
        # Frames of a failure hold the library's builder, the builder this logger, and the logger
        # the failure. Python's collector cannot see through the library: the builder, its memory
        # and its threads would stay for good.
        traceback.clear_frames(trace)
        # What was asked to stop fails in its own way first: the reason goes before it.
        if self._failure is not None and error is not self._failure:
            raise self._failure from None

    @property
    def stopped(self) -> bool:
        """Whether the build is to end."""
        return self._failure is not None

    def stop(self, failure: BaseException) -> None:
        """End the build as soon as it asks, and raise this then."""
        self._failure = self._failure or failure

    def check(self) -> None:
        """Raise what `stop` was given."""
        if self._failure is not None:
            raise self._failure

    def guard(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call from a callback: what it raises stops the build."""
        try:
            call(*arguments)
        except BaseException as error:
            self.stop(error)

    def write(self, severity: str, text: str) -> None:
        """Take a line of the library's log."""
        self.guard(self._write, severity, text)

    def _write(self, severity: str, text: str) -> None:
        if text.startswith(LOGGED):
            self.layers = text
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._errors.append(one_line(text))
        if self._file is not None:
            try:
                self._file.write(f"[{severity}] {text}\n")
            except OSError as error:
                raise InputError(f"cannot write {self._path} ({error.strerror})") from error

    def forget(self) -> None:
        """What was logged as an error so far is none for what follows."""
        self._errors.clear()

    def error(self, what: str, reasons: list[str] | None = None, *, remedy: str = "") -> BuildError:
        """An error with its reasons, by default what the library logged, and the log's path."""
        found = list(dict.fromkeys(reasons or self._errors))
        text = "; ".join(found[:MAX_ERRORS]) or "it gave no reason"
        text += f"; and {len(found) - MAX_ERRORS} more" if len(found) > MAX_ERRORS else ""
        end = "".join(f"; {part}" for part in (remedy, self._path and f"log: {self._path}") if part)
        self.forget()
        return BuildError(f"{what}: {text}{end}")


class Phases:
    """One growing share out of the builder's nested phases. It never reaches 1 by itself."""

    CEILING = 0.99
    STEP = 1e-3  # smaller ones are not told

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self._told = 0.0
        self._open: dict[str, list[Any]] = {}  # name -> parent, steps, steps done
        self._lock = threading.RLock()  # phases may run in several threads

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """A phase begins, inside a step of its parent."""
        with self._lock:
            self._open[name] = [parent, max(num_steps, 1), 0]

    def step(self, name: str) -> None:
        """A step of a phase is done."""
        with self._lock:
            if name in self._open:
                self._open[name][2] += 1
                self._update()

    def finish(self, name: str) -> None:
        """A phase is over, whether or not all its steps were seen."""
        with self._lock:
            self._open.pop(name, None)

    def _update(self) -> None:
        roots = [name for name, (parent, *_) in self._open.items() if parent not in self._open]
        share = min(max(map(self._share, roots), default=0.0), self.CEILING)
        if share >= self._told + self.STEP:
            self._told = share
            self._tell(share)

    def _share(self, name: str) -> float:
        _, num_steps, done = self._open[name]
        inside = [self._share(child) for child, (p, *_) in self._open.items() if p == name]
        return float(min((done + min(sum(inside), 1.0)) / num_steps, 1.0))


def make_monitor(api: Any, session: Session, phases: Phases) -> Any:
    """An `IProgressMonitor` that feeds `phases`, and ends the build once `session` is stopped."""

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            session.guard(phases.start, phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            session.guard(phases.step, phase_name)
            return not session.stopped

        def phase_finish(self, phase_name: str) -> None:
            session.guard(phases.finish, phase_name)

    return Monitor()


@contextmanager
def open_log(path: Path | None) -> Iterator[TextIO | None]:
    """A text file for the library's log; None gives none. Raises `InputError`."""
    if path is None:
        yield None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Line by line: what was said last is there even if the library takes the process down.
        file = path.open("w", encoding="utf-8", errors="backslashreplace", buffering=1)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): name another place") from error
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # a full disk costs the end of the log, not the build
            file.close()


def one_line(text: str) -> str:
    """A message of the library as one line that is not too long."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_ERROR_LENGTH else f"{line[:MAX_ERROR_LENGTH]}…"
