"""Benches that run on a device by themselves: started, followed, stopped, and found again.

A job is a folder named by the hash of what it does, so that the same command finds it. It lives
as long as its process holds a lock, which the system takes from it however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from oat_edge.errors import InputError
from oat_edge.files import exclusive_lock, read_json, sha256_file, write_json
from oat_edge.remote.wheel import code_digest
from oat_edge.remote.wire import CHUNK

State = Literal["none", "running", "finished", "died"]

# Files of a job's folder.
JOB, ALIVE, EVENTS, END, OUTPUT, RESULT = (
    "job.json", "alive", "events.jsonl", "end.json", "output.txt", "result",
)  # fmt: skip
# A client that follows asks at least so often; one that has not for longer is gone.
CLIENT_S = 60.0
# Looking more often would disturb what is being measured.
LOOK_S = 0.5
STOP_S = 60.0
RUN = (
    "import sys; sys.path[:] = filter(None, sys.path); from oat_edge.remote.job import main; main()"
)


@dataclass(frozen=True, slots=True)
class Jobs:
    """All jobs below one folder, as one client (a random token) sees them."""

    root: Path
    client: str

    def start(self, request: dict[str, Any], bundle: Path, manifest: str) -> dict[str, Any]:
        """Start the job, unless it is there and was not collected.

        Returns its name, the state it was found in, and when it was first started. One that died
        (the device was switched off) is started again and goes on with what it has measured; so
        does one that was interrupted, if the request says `resume`.
        """
        name = job_name(request, manifest)
        folder = self.root / name
        with exclusive_lock(self.root):
            state = self.state(name)
            if state == "none":
                if not request.get("resume"):
                    shutil.rmtree(folder, ignore_errors=True)
                (folder / RESULT).mkdir(parents=True, exist_ok=True)
                job = {"request": request, "bundle": str(bundle), "started": time.time()}
            else:
                job = read_json(folder / JOB, what="job", remedy="run again")
            self._touch(name)
            if state in ("none", "died"):
                write_json(folder / JOB, {**job, "resume": state == "died"})
                _spawn(folder)
        return {"job": name, "state": state, "started": job["started"]}

    def state(self, name: str) -> State:
        """What has become of a job."""
        folder = self._folder(name)
        if not (folder / JOB).is_file():
            return "none"
        if _held(folder / ALIVE):
            return "running"
        return "finished" if (folder / END).is_file() else "died"

    def events(self, name: str, offset: int, wait_s: float) -> dict[str, Any]:
        """What has happened since `offset`, as soon as there is anything; at most `wait_s` later.

        Returns events, the new offset, the state, and once there is nothing more the end.
        """
        folder = self._folder(name)
        self._touch(name)
        until = time.monotonic() + wait_s
        while True:
            state = self.state(name)  # asked before reading: what was written until then is read
            events, after = _read_events(folder / EVENTS, offset)
            if events or state != "running" or time.monotonic() > until:
                break
            time.sleep(LOOK_S)
        answer: dict[str, Any] = {"events": events, "offset": after, "state": state}
        if state == "finished" and not events:
            answer["end"] = read_json(folder / END, what="job's end", remedy="run again")
        if state == "died" and not events:
            answer["output"] = _tail(folder / OUTPUT)
        return answer

    def files(self, name: str, others: dict[str, Path]) -> list[dict[str, Any]]:
        """Name, size and hash of each file to fetch: the result's, and `others` by name."""
        self._touch(name)
        found = {path.name: path for path in sorted((self._folder(name) / RESULT).glob("*.*"))}
        return [
            {"name": file, "size": path.stat().st_size, "sha256": sha256_file(path)}
            for file, path in {**found, **others}.items()
            if not file.startswith(".") and path.is_file()
        ]

    def read(self, name: str, file: str, offset: int) -> bytes:
        """A piece of a file of the result."""
        if Path(file).name != file or file.startswith("."):
            raise InputError(f"got file {file!r:.80}, expected a plain file name")
        self._touch(name)
        return read_piece(self._folder(name) / RESULT / file, offset)

    def stop(self, name: str) -> dict[str, Any]:
        """Interrupt a job as Ctrl-C does, unless another client follows it; wait for its end."""
        if self.state(name) != "running":
            return {"stopped": True}
        if self._others(name):
            return {"stopped": False, "followed": True}
        folder = self._folder(name)
        pid = int((folder / ALIVE).read_text())
        until = time.monotonic() + STOP_S
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGINT)
        while self.state(name) == "running" and time.monotonic() < until:
            time.sleep(0.1)
        return {"stopped": self.state(name) != "running", "followed": False}

    def done(self, name: str, *, keep: bool) -> None:
        """This client has what it wanted: remove the job, unless others still follow it.

        keep: it gave no report, but what it measured is of use to `--resume`.
        """
        folder = self._folder(name)
        with exclusive_lock(self.root):
            (folder / "clients" / self.client).unlink(missing_ok=True)
            if self.state(name) == "running" or self._others(name):
                return
            if keep:
                (folder / JOB).unlink(missing_ok=True)
            else:
                shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, name: str) -> Path:
        if not re.fullmatch("[0-9a-f]{32}", name):
            raise InputError(f"got job {name!r:.80}, expected 32 hex digits")
        return self.root / name

    def _touch(self, name: str) -> None:
        folder = self._folder(name)
        if not folder.is_dir():
            raise InputError("the job is gone from the device: run again")
        path = folder / "clients" / self.client
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def _others(self, name: str) -> list[str]:
        """Clients that have asked for the job lately, besides this one."""
        paths = (self._folder(name) / "clients").glob("*")
        return [
            path.name
            for path in paths
            if path.name != self.client and time.time() - path.stat().st_mtime < CLIENT_S
        ]


def job_name(request: dict[str, Any], manifest: str) -> str:
    """The job's name, the same at both ends: what is measured, of which files, by which code."""
    asked = {key: value for key, value in request.items() if key != "resume"}
    what = json.dumps([manifest, asked, code_digest()], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:32]


def read_piece(path: Path, offset: int) -> bytes:
    """At most CHUNK bytes of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(CHUNK)


def _spawn(folder: Path) -> None:
    """Start the job's process: of its own session, so that no lost connection ends it."""
    (folder / END).unlink(missing_ok=True)
    with (folder / ALIVE).open("a") as alive, (folder / OUTPUT).open("ab") as output:
        fcntl.flock(alive, fcntl.LOCK_EX)  # passed on to the process: it holds it from the start
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder), str(alive.fileno())],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[alive.fileno()],
        )
        alive.truncate(0)
        alive.write(str(process.pid))


def _held(path: Path) -> bool:
    """Whether a process holds the lock."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _read_events(path: Path, offset: int) -> tuple[list[Any], int]:
    """Whole lines from `offset` on, and the offset after them."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(CHUNK)
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return list(_lines(whole)), offset + len(whole)


def _lines(data: bytes) -> Iterator[Any]:
    for line in data.splitlines():
        with contextlib.suppress(ValueError):  # cut off when the device was switched off
            yield json.loads(line)


def _tail(path: Path) -> str:
    """The last line of what a process said."""
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
    return ""


def append_event(file: IO[str], value: dict[str, Any]) -> None:
    """Add an event where `events` finds it."""
    file.write(json.dumps(value, ensure_ascii=False) + "\n")
    file.flush()
