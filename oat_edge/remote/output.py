"""What a job's process writes, read piece by piece while it goes on writing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from oat_edge.remote.wire import CHUNK


def append_event(file: IO[str], value: dict[str, Any]) -> None:
    """Add an event where `read_events` finds it."""
    file.write(json.dumps(value, ensure_ascii=False) + "\n")
    file.flush()


def read_events(path: Path, offset: int) -> tuple[list[Any], int]:
    """Whole lines from `offset` on, and the offset after them."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(CHUNK)
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return list(_lines(whole)), offset + len(whole)


def last_line(path: Path) -> str:
    """The last line of what a process said."""
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
    return ""


def read_piece(path: Path, offset: int) -> bytes:
    """At most CHUNK bytes of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(CHUNK)


def _lines(data: bytes) -> Iterator[Any]:
    for line in data.splitlines():
        with contextlib.suppress(ValueError):  # cut off when the device was switched off
            yield json.loads(line)
