"""Functions run in a fresh Python process: one call, or a worker that answers until it is closed.

What goes between the processes is JSON. Whatever kills a child (the system for want of memory, a
fault in a native library) is a `ChildFailedError` in the parent, and no more.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# Before Python 3.11 PYTHONSAFEPATH does nothing: the working folder is "" on the path.
CHILD = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from oat_edge.runtime.child import answer; answer()"
)
TIMEOUT_S = 300.0
PR_SET_PDEATHSIG = 1


class ChildFailedError(Exception):
    """The process failed; the text says how, in one line."""


def call_child(
    function: str,
    request: Any,
    *,
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> Any:
    """`function(request)`, computed by a child.  function: "package.module:name".

    environment: variables that only the child has. timeout_s: None is TIMEOUT_S. Raises
    `ChildFailedError`.
    """
    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, function, str(os.getpid())],
            input=json.dumps(request),
            env=child_environment(environment),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailedError(f"the measuring process took over {timeout_s:g} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ChildFailedError(f"the measuring process failed (code {done.returncode}: {last})")
    return json.loads(done.stdout.splitlines()[-1])


def child_environment(own: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of a child that finds the same packages, and no stray module of the folder."""
    path = os.pathsep.join(folder for folder in sys.path if folder)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **(own or {})}


def named(function: str) -> Any:
    """What "package.module:name" names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def end_with(parent: int) -> None:
    """Have the system end this process when its parent ends, however that does."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def answer() -> None:
    """The child's side: a request on stdin, the answer as the last line of stdout."""
    end_with(int(sys.argv[2]))
    found = named(sys.argv[1])(json.load(sys.stdin))
    sys.stdout.write(json.dumps(found) + "\n")
