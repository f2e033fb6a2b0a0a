"""The processes of cells, with a fault where a test wants one.

OAT_EDGE_FAULT is JSON: "in" (which opener), "do" (which question; null is while opening), "file"
and "batch" (null is any), "after" (how many such questions go well), "how" (below), and "once" (a
file that is made when the fault strikes; while it is there, none does).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

from oat_edge.bench import cell_process
from oat_edge.errors import DependencyError, FallbackError, InputError


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fail(error):
    raise error


HOW = {
    "kill": kill,
    "abort": os.abort,
    "hang": lambda: time.sleep(600),
    "bug": lambda: fail(ZeroDivisionError("a bug")),
    "memory": lambda: fail(DependencyError("cuMemAlloc failed (out of memory, 2): close others")),
    "input": lambda: fail(InputError("no place for the trace")),
    "fallback": lambda: fail(FallbackError("runs on another device")),
}


def _faulty(name):
    @contextlib.contextmanager
    def opener(request, event):
        fault = json.loads(os.environ["OAT_EDGE_FAULT"])
        here = fault["in"] == name and fault.get("file") in (None, request["file"])
        here &= fault.get("batch") in (None, request["config"]["batches"][0])
        left = fault.get("after", 0)

        def strike(question):
            nonlocal left
            if not here or question != fault["do"]:
                return
            left -= 1
            once = fault.get("once")
            if left >= 0 or (once and Path(once).exists()):
                return
            if once:
                Path(once).touch()
            HOW[fault["how"]]()

        strike(None)
        with getattr(cell_process, name)(request, event) as ask:

            def ask_or_fail(question, event):
                strike(question["do"])
                found = ask(question, event)
                if question["do"] == "throughput" and fault["how"] == "remark":
                    found["remarks"] = [*found["remarks"], fault["remark"]]
                return found

            yield ask_or_fail

    return opener


network, accuracy, layers, engine = map(_faulty, ("network", "accuracy", "layers", "engine"))
