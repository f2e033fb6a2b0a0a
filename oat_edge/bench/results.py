"""results.jsonl: what a bench has finished, a line each, so that a killed one can go on.

The first line says what is measured and on what; lines that follow are only ever appended.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from oat_edge.errors import InputError
from oat_edge.files import write_bytes

SCHEMA = "oat-edge/bench-results/1"
REMEDY = "leave out --resume, which measures all anew"
Record = dict[str, Any]
# Kinds of records that hold something measured.
FIGURES = ("part", "throughput", "accuracy", "memory", "layers")


@dataclass(slots=True)
class Results:
    """The open file and all that it holds."""

    path: Path
    records: list[Record] = field(default_factory=list)
    """Without the first line."""

    @classmethod
    def open(
        cls,
        path: Path,
        key: dict[str, Any],
        *,
        resume: bool,
        session: dict[str, Any] | None = None,
    ) -> Results:
        """Start a file, or with `resume` go on with the one that is there.

        session: JSON values that are noted of this run.

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
        results.add({"kind": "session", "timestamp_utc": now, **(session or {})})
        return results

    @classmethod
    def peek(cls, path: Path, key: dict[str, Any] | None = None) -> Results:
        """What is there, to be looked at only; nothing if there is no such file.

        key: the part of a key that must be the same, as for `open`.
        """
        results = cls(path)
        if path.exists():
            first, *results.records = _whole_lines(path)[0] or [{}]
            if key is not None:
                _check_key(path, first.get("key", {}), key, names=key)
        return results

    def sessions(self) -> list[Record]:
        """Runs that have measured something, in order."""
        found: list[Record] = []
        newest: Record | None = None
        for record in self.records:
            if record["kind"] == "session":
                newest = record
            elif newest is not None and record["kind"] in FIGURES:
                found.append(newest)
                newest = None
        return found

    def add(self, record: Record) -> None:
        """Append one record; it is on the disk when this returns."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # Half a line would spoil the next one.
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
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
        _check_key(self.path, there, key, names={**key, **there})
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        self.records = lines[1:]


def _check_key(
    path: Path, there: dict[str, Any], here: dict[str, Any], *, names: Iterable[str]
) -> None:
    """Raise `InputError` that says what differs, and how."""
    differing = [
        (name, was, now)
        for name in sorted(names)
        for name, was, now in _differences(name, there.get(name), here.get(name))
    ]
    if differing:
        name, was, now = differing[0]
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise InputError(
            f"{path} was measured with another {name}: it was {_short(was)}, is {_short(now)}"
            f"{more}: take the same options, or {REMEDY}"
        )


def _differences(name: str, was: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """The smallest parts that differ, by dotted name."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted({*was, *now}):
            yield from _differences(f"{name}.{key}", was.get(key), now.get(key))
    elif was != now:
        yield name, was, now


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
