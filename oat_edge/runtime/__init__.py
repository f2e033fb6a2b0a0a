"""Running exported networks. `open_runner` is all that an application needs."""

from __future__ import annotations

from pathlib import Path

from oat_edge.bundle import Artifact, Bundle
from oat_edge.runtime.artifacts import artifacts_for, pick
from oat_edge.runtime.engines import Say, obtain_engine, recipe_of, silent
from oat_edge.runtime.recipe import LIBRARIES
from oat_edge.runtime.runner import Runner, RunnerIO

__all__ = ["Runner", "RunnerIO", "artifacts_for", "open_artifact", "open_runner"]


def open_runner(
    bundle: str | Path,
    width: float | None = None,
    *,
    device: str = "cpu",
    format: str | None = None,
    precision: str | None = None,
    pinned_lambda: float | None = None,
    threads: int | None = None,
    cuda_graph: bool = True,
) -> Runner:
    """Open one width of a bundle on a device.

    width: one that was exported; None takes the widest. device: "cpu" or "cuda". format: "onnx",
    "trt" or "trt-rtx"; None takes on a GPU an engine where the bundle has one. precision: "fp32",
    "fp16", "int8"; None takes what there is, the smallest if there are several.
    pinned_lambda: open the file with that λ folded in instead of the one with λ as an input.
    threads: CPU threads; None lets the back end choose. cuda_graph: on a GPU, replay one CUDA
    graph per batch size.
    The file's hash is checked first. An engine that is deferred, or was built for another device
    or library version, is built here once (minutes) and kept in the user's cache.
    Raises `InputError` (bad bundle, no such width), `DependencyError` (no library, no GPU),
    `BuildError`, `FallbackError`.
    """
    opened = Bundle.open(bundle)
    artifact = pick(
        opened,
        device=device,
        width=width,
        format=format,
        precision=precision,
        pinned_lambda=pinned_lambda,
    )
    return open_artifact(opened, artifact, device=device, threads=threads, cuda_graph=cuda_graph)


def open_artifact(
    bundle: Bundle,
    artifact: Artifact,
    *,
    device: str = "cpu",
    threads: int | None = None,
    cuda_graph: bool = True,
    say: Say = silent,
) -> Runner:
    """Open one artifact of a bundle whose hash has been checked here.

    say: told when an engine has to be built first, and how far that is.
    """
    io = RunnerIO.of(bundle.spec, artifact.pinned_lambda)
    if artifact.format in LIBRARIES:
        from oat_edge.runtime.trt import TrtRunner

        engine = obtain_engine(bundle, artifact, device=device, say=say)
        return TrtRunner(
            engine.path,
            io,
            recipe=recipe_of(artifact),
            sha256=engine.sha256,
            typing=engine.typing,
            cuda_graph=cuda_graph,
        )
    from oat_edge.runtime.ort import OrtRunner

    return OrtRunner(
        bundle.checked_path(artifact),
        io,
        device=device,
        precision=artifact.precision_requested,
        threads=threads,
        cuda_graph=cuda_graph,
    )
