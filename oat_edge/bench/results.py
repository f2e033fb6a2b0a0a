"""results.jsonl: what a bench has finished, a line each, so that a killed one can go on.

The first line says what is measured and on what; lines that follow are only ever appended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from oat_edge.errors import InputError
from oat_edge.files import write_bytes

SCHEMA = "oat-edge/bench-results/1"
REMEDY = "bench without --resume starts anew"
Record = dict[str, Any]


@dataclass(slots=True)
class Results:
    """The open file and all that it holds."""

    path: Path
    records: list[Record] = field(default_factory=list)
    """Without the first line."""
    sessions: list[str] = field(default_factory=list)
    """When each run that wrote into it began (UTC)."""

    @classmethod
    def open(cls, path: Path, key: dict[str, Any], *, resume: bool) -> Results:
        """Start a file, or with `resume` go on with the one that is there.

        key: JSON values, by name, of everything that decides what is measured. Raises `InputError`
        if a file that is there was measured with another key. A last line that was cut off by a
        crash is dropped.
        """
        results = cls(path)
        if resume and path.exists():
            results._read(key)
        else:
            first = {"schema": SCHEMA, "key": key}
            write_bytes(path, (json.dumps(first, ensure_ascii=False) + "\n").encode())
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        results.add({"kind": "session", "timestamp_utc": now})
        results.sessions.append(now)
        return results

    @classmethod
    def peek(cls, path: Path) -> Results:
        """What is there, to be looked at only; nothing if there is no such file."""
        results = cls(path)
        if path.exists():
            results.records = _whole_lines(path)[0][1:]
        return results

    def add(self, record: Record) -> None:
        """Append one record; it is on the disk when this returns."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(
                f"cannot write {self.path} ({error.strerror}): make room, then bench --resume"
            ) from error
        self.records.append(record)

    def of(self, kind: str, **facts: Any) -> Iterator[Record]:
        """Records of a kind whose fields are these, in the order in which they were added."""
        for record in self.records:
            if record["kind"] == kind and all(record.get(k) == v for k, v in facts.items()):
                yield record

    def last(self, kind: str, **facts: Any) -> Record | None:
        """The newest of them."""
        found = None
        for found in self.of(kind, **facts):  # noqa: B007 (the last one is wanted)
            pass
        return found

    def _read(self, key: dict[str, Any]) -> None:
        lines, whole, content = _whole_lines(self.path)
        if not lines or lines[0].get("schema") != SCHEMA:
            raise InputError(f"{self.path} is not a file of bench results: {REMEDY}")
        if b"\n" in content[whole:].rstrip(b"\n"):
            raise InputError(f"{self.path} is damaged after {len(lines)} lines: {REMEDY}")
        there = lines[0].get("key", {})
        differing = sorted(name for name in {*key, *there} if key.get(name) != there.get(name))
        if differing:
            name = differing[0]
            raise InputError(
                f"{self.path} was measured with another {', '.join(differing)} "
                f"({name} was {_short(there.get(name))}, is {_short(key.get(name))}): {REMEDY}"
            )
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        self.records = lines[1:]
        self.sessions = [record["timestamp_utc"] for record in self.of("session")]


def _whole_lines(path: Path) -> tuple[list[Record], int, bytes]:
    """Records up to the first that is not whole, the bytes that they take, and all there is."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {REMEDY}") from error
    whole, lines = 0, []
    for line in content.splitlines(keepends=True):
        try:
            value = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            break
        lines.append(value)
        whole += len(line)
    return lines, whole, content


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
