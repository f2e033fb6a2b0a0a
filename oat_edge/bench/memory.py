"""Memory that an artifact costs a process, measured in a fresh child process.

The figure is resident memory after the artifact was opened and run at a batch, less that of the
same process just before, with Python, numpy and the back end already loaded.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oat_edge.bundle import Artifact, Bundle
from oat_edge.require import require
from oat_edge.runtime import open_artifact

CHILD = "from oat_edge.bench.memory import child; child()"
# The library that runs a format.
BACKENDS = {"onnx": "onnxruntime"}
TIMEOUT_S = 300
RUNS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryCost:
    """Resident memory added, by batch; None with a reason where it could not be read."""

    added_mb: dict[int, float | None]
    reason: str | None = None


def measure_memory(
    bundle: Bundle,
    artifact: Artifact,
    *,
    batches: tuple[int, ...],
    threads: int | None = None,
    device: str = "cpu",
    sysroot: Path = Path("/"),
) -> MemoryCost:
    """Open `artifact` in a child and run the batches in growing order (1 MB is 10^6 bytes).

    A batch's figure thus includes what smaller ones left allocated, which it would need anyway.
    """
    request = {
        "bundle": str(bundle.path),
        "file": artifact.file,
        "batches": sorted(batches),
        "threads": threads,
        "device": device,
        "sysroot": str(sysroot),
    }
    # The child must find the same packages, and no stray module of the working folder.
    path = os.pathsep.join(folder for folder in sys.path if folder)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD],
            input=json.dumps(request),
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return _unknown(batches, f"the measuring process took over {TIMEOUT_S} s")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return _unknown(batches, f"the measuring process failed (code {done.returncode}: {last})")
    resident_mb: list[float | None] = json.loads(done.stdout.splitlines()[-1])
    if None in resident_mb:
        return _unknown(batches, "/proc/self/status is not readable here")
    before, *after = (mb for mb in resident_mb if mb is not None)
    added = zip(sorted(batches), after, strict=True)
    return MemoryCost(added_mb={batch: mb - before for batch, mb in added})


def resident_mb(sysroot: Path = Path("/")) -> float | None:
    """Resident memory (VmRSS) of this process in MB; None without /proc."""
    try:
        status = (sysroot / "proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmRSS:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) * 1024 / 1e6 if found else None


def child() -> None:
    """Read a request on stdin; write [before, after batch 1, …] in MB as JSON on stdout."""
    request = json.load(sys.stdin)
    bundle = Bundle.open(request["bundle"])
    artifact = next(item for item in bundle.artifacts if item.file == request["file"])
    sys.stdout.write(json.dumps(_child_figures(bundle, artifact, request)) + "\n")


def _child_figures(
    bundle: Bundle, artifact: Artifact, request: dict[str, Any]
) -> list[float | None]:
    # Imported first, so that the library is not counted as the artifact's cost.
    require(BACKENDS[artifact.format], purpose=f"running {artifact.file}")
    sysroot = Path(request["sysroot"])
    images = np.zeros((max(request["batches"]), *bundle.spec.image_shape), dtype=np.float32)
    images += np.float32(0.5)  # touches the pages, so that they do not count later
    lam = bundle.spec.lambdas[-1] if artifact.pinned_lambda is None else artifact.pinned_lambda
    figures = [resident_mb(sysroot)]
    with open_artifact(
        bundle, artifact, device=request["device"], threads=request["threads"]
    ) as runner:
        for batch in request["batches"]:
            for _ in range(RUNS):
                runner.infer(images[:batch], lam)
            figures.append(resident_mb(sysroot))
    return figures


def _unknown(batches: tuple[int, ...], reason: str) -> MemoryCost:
    return MemoryCost(added_mb=dict.fromkeys(batches), reason=reason)
