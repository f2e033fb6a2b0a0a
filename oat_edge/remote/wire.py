"""Messages between the two ends of a connection: a line of JSON, then as many bytes as it says."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from typing import Any

from oat_edge import errors
from oat_edge.errors import OatEdgeError

# What a shell's start-up files print comes before it and is skipped.
MAGIC = b"oat-edge agent 1 "
MAX_NOISE = 1 << 16
MAX_LINE = 1 << 22
CHUNK = 1 << 20
# Of a traceback: its end says what went wrong.
MOST_LINES = 200


class WireError(Exception):
    """What came is no message: the other end is something else, or an older version."""


def pack(value: dict[str, Any], payload: bytes = b"") -> bytes:
    """One message."""
    line = json.dumps({**value, "size": len(payload)}, ensure_ascii=False, allow_nan=False)
    return line.encode(errors="surrogatepass") + b"\n" + payload


class Stream:
    """Messages out of the bytes that `receive` gives; b"" from it is the end."""

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive
        self._buffer = bytearray()

    def message(self) -> tuple[dict[str, Any], bytes]:
        """The next message and its payload; `EOFError` at the end, `WireError` for damage."""
        line = self._line(MAX_LINE)
        try:
            value = json.loads(line)
            size = value.pop("size")
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            raise WireError(f"got {line[:60]!r}, expected a message") from None
        if not isinstance(size, int) or not 0 <= size <= 2 * CHUNK:
            raise WireError(f"got a payload of {size!r:.60} bytes")
        return value, self._take(size)

    def greeting(self) -> dict[str, Any]:
        """The first message, which follows MAGIC at the start of a line."""
        skipped = 0
        while skipped < MAX_NOISE:
            line = self._line(MAX_NOISE)
            skipped += len(line)
            if line.startswith(MAGIC):
                try:
                    value = json.loads(line.removeprefix(MAGIC))
                except (ValueError, RecursionError):
                    raise WireError(f"got {line[:60]!r}, expected a greeting") from None
                return value if isinstance(value, dict) else {}
        raise WireError(f"got {skipped} bytes of other output")

    def _line(self, most: int) -> bytes:
        start = 0
        while (end := self._buffer.find(b"\n", start)) < 0:
            if (start := len(self._buffer)) > most:
                raise WireError(f"got {bytes(self._buffer[:60])!r}, expected a line")
            self._fill()
        return self._take(end + 1)

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _fill(self) -> None:
        data = self._receive()
        if not data:
            raise EOFError
        self._buffer += data


def plain(value: Any) -> Any:
    """A JSON value from another machine, whose texts no terminal obeys.

    What is not printable (escapes, new lines, marks that turn the direction) becomes a space.
    """
    try:
        return _plain(value)
    except RecursionError:
        raise WireError("got a value that is nested too deeply") from None


def _plain(value: Any) -> Any:
    if isinstance(value, str) and not value.isprintable():
        return "".join(letter if letter.isprintable() else " " for letter in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value


class RemoteBugError(RuntimeError):
    """What went wrong on a device was not expected: its traceback is the text."""


def error_to_json(error: BaseException) -> dict[str, Any]:
    """What the other end needs to raise it again."""
    expected = isinstance(error, OatEdgeError)
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return {
        "class": type(error).__name__,
        "exit_code": error.exit_code if isinstance(error, OatEdgeError) else 1,
        "message": str(error),
        # As lines: a new line in a text does not arrive (see `plain`).
        "traceback": None if expected else "".join(lines).splitlines(),
    }


def error_from_json(value: dict[str, Any], where: str) -> Exception:
    """The same error, with the name of the machine in front.

    A class is taken only if it is one of `oat_edge.errors`: the name is another machine's.
    """
    if value["traceback"] is not None:
        lines = [str(line) for line in value["traceback"]]
        return RemoteBugError(f"on {where}:\n" + "\n".join(lines[-MOST_LINES:]))
    found = getattr(errors, str(value["class"]), None)
    if not (isinstance(found, type) and issubclass(found, OatEdgeError)):
        found = OatEdgeError
    return found(f"{where}: {value['message']:.2000}")
