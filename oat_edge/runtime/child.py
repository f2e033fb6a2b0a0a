"""A function run in a fresh Python process: JSON in, JSON out."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# Before Python 3.11 PYTHONSAFEPATH does nothing: the working folder is "" on the path.
CHILD = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from oat_edge.runtime.child import answer; answer()"
)
TIMEOUT_S = 300


class ChildFailedError(Exception):
    """The process failed; the text says how, in one line."""


def call_child(function: str, request: Any, *, environment: Mapping[str, str] | None = None) -> Any:
    """`function(request)`, computed by a child.  function: "package.module:name".

    environment: variables that only the child has. Raises `ChildFailedError`.
    """
    # The child must find the same packages, and no stray module of the working folder.
    path = os.pathsep.join(folder for folder in sys.path if folder)
    own = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, function],
            input=json.dumps(request),
            env={**os.environ, **own, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailedError(f"the measuring process took over {TIMEOUT_S} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ChildFailedError(f"the measuring process failed (code {done.returncode}: {last})")
    return json.loads(done.stdout.splitlines()[-1])


def answer() -> None:
    """The child's side: a request on stdin, the answer as the last line of stdout."""
    module, _, name = sys.argv[1].partition(":")
    found = getattr(importlib.import_module(module), name)(json.load(sys.stdin))
    sys.stdout.write(json.dumps(found) + "\n")
