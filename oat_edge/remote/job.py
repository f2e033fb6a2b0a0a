"""The process of a bench that runs on a device by itself (see `oat_edge.remote.jobs`)."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from oat_edge.bench.request import BenchRequest, run_request
from oat_edge.bundle import Bundle
from oat_edge.errors import OatEdgeError
from oat_edge.files import read_json, write_json
from oat_edge.remote.jobs import END, EVENTS, JOB, RESULT
from oat_edge.remote.output import append_event
from oat_edge.remote.wire import error_to_json

# More often nobody can read it, and writing takes time from the measurement.
EVENT_S = 0.5


def main() -> None:
    """Run the job in the folder sys.argv[1]; the file descriptor sys.argv[2] is its lock."""
    folder = Path(sys.argv[1])
    lock = int(sys.argv[2])
    os.set_inheritable(lock, False)  # the lock must not outlive this process
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _leave)
    try:
        os.write(lock, str(os.getpid()).encode())  # from now on it can be stopped
        bench(folder)
        end: dict[str, Any] = {"ok": True}
    except OatEdgeError as error:
        end = {"error": error_to_json(error)}
    except KeyboardInterrupt:
        end = {"interrupted": True}
    except Exception as error:
        end = {"error": error_to_json(error)}
    write_json(folder / END, end)


def bench(folder: Path) -> None:
    """Do what job.json asks for."""
    job = read_json(folder / JOB, what="job", remedy="run again")
    request = BenchRequest.from_json(job["request"])
    if job["resume"]:
        request = dataclasses.replace(request, resume=True)
    bundle = Bundle.open(job["bundle"])
    with (folder / EVENTS).open("a", encoding="utf-8") as events:
        last_s = 0.0

        def seldom() -> bool:
            nonlocal last_s
            now = time.monotonic()
            due = now - last_s >= EVENT_S
            last_s = now if due else last_s
            return due

        def say(text: str, share: float = 0.0) -> None:
            if not share or seldom():
                append_event(events, {"say": [text, share]})

        def progress(done_s: float, total_s: float, label: str) -> None:
            if seldom():
                append_event(events, {"progress": [done_s, total_s, label]})

        run_request(request, bundle, folder=folder / RESULT, progress=progress, say=say)


def _leave(number: int, frame: object) -> None:
    """The device is being switched off: clean up, and leave no end, so that it is started again."""
    raise SystemExit(128 + number)
