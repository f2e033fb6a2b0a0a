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
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from oat_edge.errors import InputError
from oat_edge.files import exclusive_lock, read_json, sha256_file, write_json
from oat_edge.remote.output import last_line, read_events, read_piece
from oat_edge.remote.wheel import code_digest

State = Literal["none", "running", "finished", "died", "old"]

# Files of a job's folder.
JOB, ALIVE, EVENTS, END, OUTPUT, RESULT, COLLECTED = (
    "job.json", "alive", "events.jsonl", "end.json", "output.txt", "result", "collected",
)  # fmt: skip
# A client that follows asks at least every 10 s (oat_edge.remote.bench.WAIT_S); one that has not
# for so long is gone.
CLIENT_S = 25.0
DAY_S = 86400.0
# A result that nobody collected for longer is not what a new command asks for.
FRESH_S = DAY_S
KEEP_S = 30 * DAY_S
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
        """Start the job, unless it is there and nobody has collected it.

        Returns its name, the state it was found in, and when it was first started. One that died
        (the device was switched off) is started again and goes on with what it has measured; so
        does one that was interrupted, if the request says `resume`. "old": it has waited for a
        day, and is done anew.
        """
        name = job_name(request, manifest)
        with exclusive_lock(self.root):
            self._clean()
            folder = self._folder(name)
            aside = folder != self.root / name  # this client asks again for what it has followed
            state = _state(folder) if aside else _found(folder)
            job: dict[str, Any] = {"started": time.time()}
            if state != "none":
                job = read_json(folder / JOB, what="job", remedy="run again")
            started = job["started"]
            if state in ("none", "old"):
                self._clear(folder, resume=bool(request.get("resume")))
                job = {"request": request, "bundle": str(bundle), "started": time.time()}
            self._touch(name)
            if state in ("none", "old", "died"):
                write_json(folder / JOB, {**job, "resume": state == "died"})
                _spawn(folder)
        return {"job": name, "state": state, "started": started}

    def state(self, name: str) -> State:
        """What has become of a job."""
        return _state(self._folder(name))

    def events(self, name: str, offset: int, wait_s: float) -> dict[str, Any]:
        """What has happened since `offset`, as soon as there is anything; at most `wait_s` later.

        Returns events, the new offset, the state, and once there is nothing more the end.
        """
        folder = self._folder(name)
        self._touch(name)
        until = time.monotonic() + wait_s
        while True:
            state = self.state(name)  # asked before reading: what was written until then is read
            events, after = read_events(folder / EVENTS, offset)
            if events or state != "running" or time.monotonic() > until:
                break
            time.sleep(LOOK_S)
        answer: dict[str, Any] = {"events": events, "offset": after, "state": state}
        if state == "finished" and not events:
            answer["end"] = read_json(folder / END, what="job's end", remedy="run again")
        if state == "died" and not events:
            answer["output"] = last_line(folder / OUTPUT)
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
        folder = self._folder(name)
        if self._others(folder):
            return {"stopped": False, "followed": True}
        until, told = time.monotonic() + STOP_S, False
        while self.state(name) == "running" and time.monotonic() < until:
            # Empty until the process has written it: what was there is of another process.
            if not told and (pid := (folder / ALIVE).read_text()):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(pid), signal.SIGINT)
                told = True
            time.sleep(0.1)
        return {"stopped": self.state(name) != "running", "followed": False}

    def done(self, name: str, *, keep: bool) -> None:
        """This client has what it wanted: remove the job, or mark it if others still follow it.

        keep: it gave no report, but what it measured is of use to `--resume`. Either way no later
        `start` finds it.
        """
        with exclusive_lock(self.root):
            folder = self._folder(name)
            (folder / "clients" / self.client).unlink(missing_ok=True)
            if not folder.is_dir() or _state(folder) == "running":
                return
            if self._others(folder):
                (folder / COLLECTED).touch()
            elif keep:
                (folder / JOB).unlink(missing_ok=True)
            else:
                shutil.rmtree(folder, ignore_errors=True)

    def _clear(self, folder: Path, *, resume: bool) -> None:
        """Make room for a new start; what was measured stays if the start is to go on with it.

        A collected job that others still fetch moves aside, where `_folder` finds it for them.
        """
        result = folder / RESULT
        if folder.is_dir() and self._others(folder):
            aside = folder.rename(f"{folder}.{secrets.token_hex(8)}")
            if resume:
                shutil.copytree(aside / RESULT, result)
        elif folder.is_dir():
            for path in folder.iterdir():
                if path != result or not resume:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        result.mkdir(parents=True, exist_ok=True)

    def _clean(self) -> None:
        """Remove what nobody has asked for in a month, and what moved aside once it is fetched."""
        for folder in self.root.glob("*"):
            if not folder.is_dir() or _held(folder / ALIVE):
                continue
            times = (path.stat().st_mtime for path in (folder, *folder.rglob("*")))
            fetched = "." in folder.name and not (folder / "clients" / self.client).exists()
            if (fetched and not self._others(folder)) or time.time() - max(times) > KEEP_S:
                shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, name: str) -> Path:
        """The folder of a job: the one that this client follows, if there are two."""
        if not re.fullmatch("[0-9a-f]{32}", name):
            raise InputError(f"got job {name!r:.80}, expected 32 hex digits")
        followed = (path.parents[1] for path in self.root.glob(f"{name}.*/clients/{self.client}"))
        return next(followed, self.root / name)

    def _touch(self, name: str) -> None:
        folder = self._folder(name)
        if not folder.is_dir():
            raise InputError("the job is gone from the device: run again")
        path = folder / "clients" / self.client
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def _others(self, folder: Path) -> list[str]:
        """Clients that have asked for the job lately, besides this one."""
        paths = (folder / "clients").glob("*")
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


def _state(folder: Path) -> State:
    """What has become of the job in a folder."""
    if not (folder / JOB).is_file():
        return "none"
    if _held(folder / ALIVE):
        return "running"
    return "finished" if (folder / END).is_file() else "died"


def _found(folder: Path) -> State:
    """The same for a new client: no job that was collected, "old" for one that waited too long."""
    state = _state(folder)
    if (folder / COLLECTED).exists():
        return "none"
    if state == "finished" and time.time() - (folder / END).stat().st_mtime > FRESH_S:
        return "old"
    return state


def _spawn(folder: Path) -> None:
    """Start the job's process: of its own session, so that no lost connection ends it."""
    (folder / END).unlink(missing_ok=True)
    with (folder / ALIVE).open("a") as alive, (folder / OUTPUT).open("ab") as output:
        fcntl.flock(alive, fcntl.LOCK_EX)  # passed on to the process: it holds it from the start
        alive.truncate(0)  # the process writes its number there, once it can be interrupted
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder), str(alive.fileno())],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[alive.fileno()],
        )


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
