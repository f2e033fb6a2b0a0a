"""A child process that stays: it opens something once and answers questions about it.

Questions go to its stdin, answers and events come back through a pipe of their own, a line of
JSON each: what a native library prints cannot get between them.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from oat_edge import errors
from oat_edge.errors import OatEdgeError
from oat_edge.runtime.child import ChildFailedError, child_environment, end_with, named

CHILD = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from oat_edge.runtime.worker import serve; serve()"
)
# How long an idle child may take to close what it has open.
CLOSE_S = 5.0


class ChildSilentError(ChildFailedError):
    """The process said nothing for too long."""


Event = Callable[[Any], object]
"""Called with JSON values."""
Ask = Callable[[Any, Event], Any]
"""The child's side: a question, and where to send events; returns the answer."""


class Worker:
    """A context manager around the child.

    opener: "package.module:name" of a context manager that is called with `request` and an `Event`
    and yields an `Ask`. It runs in the child.
    """

    def __init__(self, opener: str, request: Any) -> None:
        reading, writing = os.pipe()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, opener, str(writing), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=self._stderr,
            stderr=self._stderr,
            env=child_environment(),
            pass_fds=(writing,),
        )
        os.close(writing)
        self._pipe = os.fdopen(reading, "rb", buffering=0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)
        self._unread = b""
        self._busy = False
        self._request: Any = request

    def ask(self, question: Any, *, silence_s: float, event: Event = lambda _: None) -> Any:
        """The child's answer.  event: gets what the child tells meanwhile.

        silence_s: a child that says nothing for so long is ended. The first question also opens.
        Raises the `OatEdgeError` that the child raised, and `ChildFailedError` for any other end.
        """
        first, self._request = self._request, None
        self._busy = True
        try:
            if first is not None:
                self._send(first)
            self._send(question)
        except BrokenPipeError:
            raise self._ended() from None
        while True:
            kind, value = self._line(silence_s)
            if kind == "event":
                event(value)
                continue
            self._busy = False
            if kind == "answer":
                return value
            if kind == "error":
                raise getattr(errors, value["class"])(value["text"])
            raise ChildFailedError(value)

    def close(self) -> None:
        """End the child: gently if it is idle, at once if it is at work."""
        if self._busy:
            self._process.kill()
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._selector.close()
        self._pipe.close()
        self._stderr.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value).encode() + b"\n")
        self._process.stdin.flush()

    def _line(self, silence_s: float) -> tuple[str, Any]:
        deadline = time.monotonic() + silence_s
        while b"\n" not in self._unread:
            if not self._selector.select(max(deadline - time.monotonic(), 0.0)):
                self._process.kill()
                raise ChildSilentError(f"it said nothing for {silence_s:.3g} s and was ended")
            block = os.read(self._pipe.fileno(), 1 << 20)
            if not block:
                raise self._ended()
            self._unread += block
        line, _, self._unread = self._unread.partition(b"\n")
        kind, value = json.loads(line)
        return kind, value

    def _ended(self) -> ChildFailedError:
        """How the child ended, in one line."""
        code = self._process.wait()
        self._busy = False
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        said = f": {lines[-1].strip()}" if lines else ""
        if code >= 0:
            return ChildFailedError(f"its process ended with code {code}{said}")
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        why = " (the system does so when memory runs out)" if -code == signal.SIGKILL else said
        return ChildFailedError(f"its process was ended by {name}{why}")


def serve() -> None:
    """The child's side: open, then answer until stdin ends."""
    end_with(int(sys.argv[3]))
    # Ctrl-C reaches all processes of a terminal: what it means is the parent's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(int(sys.argv[2]), "w", encoding="utf-8")

    def send(kind: str, value: Any) -> None:
        out.write(json.dumps([kind, value]) + "\n")
        out.flush()

    def event(value: Any) -> None:
        send("event", value)

    questions = iter(sys.stdin)
    try:
        with named(sys.argv[1])(json.loads(next(questions)), event) as ask:
            for line in questions:
                try:
                    send("answer", ask(json.loads(line), event))
                except OatEdgeError as error:
                    send(*_told(error))
    except StopIteration:
        return
    except OatEdgeError as error:  # while opening: the question that waits gets it
        send(*_told(error))
    except Exception as error:
        traceback.print_exc()
        send("crash", f"{type(error).__name__}: {error}".strip())
        raise SystemExit(1) from None


def _told(error: OatEdgeError) -> tuple[str, dict[str, str]]:
    return "error", {"class": type(error).__name__, "text": str(error)}
