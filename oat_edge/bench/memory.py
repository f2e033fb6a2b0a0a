"""Memory that an artifact costs a process, measured in a fresh child process.

On the host it is resident memory after the artifact was opened and run at a batch, less that of
the same process just before, with Python, numpy and the back end already loaded. On a GPU it is
the same difference of what is in use on the whole GPU, with the CUDA context already made; it is
right while no other process takes or frees memory there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import DependencyError
from oat_edge.require import require
from oat_edge.runtime import open_artifact
from oat_edge.runtime.child import call_child
from oat_edge.runtime.cuda import memory_used_mb
from oat_edge.runtime.ort_session import load_library
from oat_edge.runtime.recipe import LIBRARIES

RUNS = 3
DISTURBED = "less of the GPU's memory was in use than before: another process freed some"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryCost:
    """Memory added, by batch; None with a reason where it could not be read."""

    added_mb: dict[int, float | None]
    """Resident memory of the process."""
    reason: str | None = None
    gpu_added_mb: dict[int, float | None] | None = None
    """Memory of the whole GPU; None on a CPU. Other processes disturb it."""
    gpu_reason: str | None = None


def measure_memory(
    bundle: Bundle,
    artifact: Artifact,
    *,
    batches: tuple[int, ...],
    threads: int | None = None,
    device: str = "cpu",
    cuda_graph: bool = True,
    timeout_s: float | None = None,
    sysroot: Path = Path("/"),
) -> MemoryCost:
    """Open `artifact` in a child and run the batches in growing order (1 MB is 10^6 bytes).

    A batch's figure thus includes what smaller ones left allocated, which it would need anyway.
    Raises `ChildFailedError` if the child fails.
    """
    request = {
        "bundle": str(bundle.path),
        "file": artifact.file,
        "batches": sorted(batches),
        "threads": threads,
        "device": device,
        "cuda_graph": cuda_graph,
        "sysroot": str(sysroot),
    }
    on_gpu = device != "cpu"
    found = call_child(f"{__name__}:child", request, timeout_s=timeout_s)
    added_mb = _added(batches, found["resident_mb"])
    gpu_added_mb = _added(batches, found["gpu_mb"]) if on_gpu else None
    gpu_reason = found["gpu_reason"]
    for batch, mb in (gpu_added_mb or {}).items():
        if gpu_added_mb is not None and mb is not None and mb < 0:
            gpu_added_mb[batch] = None
            gpu_reason = gpu_reason or DISTURBED
    return MemoryCost(
        added_mb=added_mb,
        reason="/proc/self/status is not readable here" if None in added_mb.values() else None,
        gpu_added_mb=gpu_added_mb,
        gpu_reason=gpu_reason,
    )


def resident_mb(sysroot: Path = Path("/")) -> float | None:
    """Resident memory (VmRSS) of this process in MB; None without /proc."""
    try:
        status = (sysroot / "proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmRSS:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) * 1024 / 1e6 if found else None


def child(request: dict[str, Any]) -> dict[str, Any]:
    """The child's side: figures before the artifact is opened and after each batch, in MB."""
    bundle = Bundle.open(request["bundle"])
    artifact = next(item for item in bundle.artifacts if item.file == request["file"])
    # Imported first, so that the library is not counted as the artifact's cost.
    sysroot, on_gpu = Path(request["sysroot"]), request["device"] != "cpu"
    if artifact.format in LIBRARIES:
        require(LIBRARIES[artifact.format], purpose=f"running {artifact.file}")
    else:
        load_library(request["device"])
    images = np.zeros((max(request["batches"]), *bundle.spec.image_shape), dtype=np.float32)
    images += np.float32(0.5)  # touches the pages, so that they do not count later
    lam = bundle.spec.lambdas[-1] if artifact.pinned_lambda is None else artifact.pinned_lambda
    gpu_mb, gpu_reason = [], None

    def gpu_now() -> float | None:
        nonlocal gpu_reason
        try:
            return memory_used_mb() if on_gpu else None
        except DependencyError as error:
            gpu_reason = str(error)
            return None

    gpu_mb.append(gpu_now())  # makes the context, which costs host memory, too
    host_mb = [resident_mb(sysroot)]
    with open_artifact(
        bundle,
        artifact,
        device=request["device"],
        threads=request["threads"],
        cuda_graph=request["cuda_graph"],
    ) as runner:
        for batch in request["batches"]:
            for _ in range(RUNS):
                runner.infer(images[:batch], lam)
            host_mb.append(resident_mb(sysroot))
            gpu_mb.append(gpu_now())
    return {"resident_mb": host_mb, "gpu_mb": gpu_mb, "gpu_reason": gpu_reason}


def _added(batches: Sequence[int], figures_mb: Sequence[float | None]) -> dict[int, float | None]:
    """Figures after each batch less the one before."""
    before, *after = figures_mb
    return {
        batch: None if before is None or mb is None else mb - before
        for batch, mb in zip(sorted(batches), after, strict=True)
    }
