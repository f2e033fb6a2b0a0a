"""Running exported networks. `open_runner` is all that an application needs."""

from __future__ import annotations

from pathlib import Path

from oat_edge.bundle import Artifact, Bundle
from oat_edge.calib.operating_point_file import OperatingPointFile
from oat_edge.errors import InputError
from oat_edge.runtime.artifacts import artifacts_for, pick
from oat_edge.runtime.engines import Say, obtain_engine, recipe_of, silent
from oat_edge.runtime.policy import Policy
from oat_edge.runtime.recipe import LIBRARIES
from oat_edge.runtime.runner import Runner, RunnerIO

__all__ = ["Policy", "Runner", "RunnerIO", "artifacts_for", "open_artifact", "open_runner"]


def open_runner(
    bundle: str | Path,
    width: float | None = None,
    *,
    device: str | None = None,
    format: str | None = None,
    precision: str | None = None,
    pinned_lambda: float | None = None,
    threads: int | None = None,
    cuda_graph: bool = True,
    operating_point: str | Path | OperatingPointFile | None = None,
) -> Runner:
    """Open one width of a bundle on a device.

    width: one that was exported; None takes the widest. device: "cpu" (None) or "cuda". format:
    "onnx", "trt" or "trt-rtx"; None takes on a GPU an engine where the bundle has one. precision:
    "fp32", "fp16", "int8"; None takes what there is, the smallest if there are several.
    pinned_lambda: open the file with that λ folded in instead of the one with λ as an input.
    threads: CPU threads; None lets the back end choose. cuda_graph: on a GPU, replay one CUDA
    graph per batch size.
    operating_point: what `oat-edge calibrate` chose, or the file that says it. It is what says
    width, format, precision and λ: `infer` without a λ takes this one, an explicit λ still wins.
    Device and threads are those that it was measured with, unless they are given.
    The file's hash is checked first. An engine that is deferred, or was built for another device
    or library version, is built here once (minutes) and kept in the user's cache.
    Raises `InputError` (bad bundle, no such width), `DependencyError` (no library, no GPU),
    `BuildError`, `FallbackError`.
    """
    opened = Bundle.open(bundle)
    if operating_point is not None:
        _check_alone(width, format, precision, pinned_lambda)
        return _open_point(opened, operating_point, device, threads, cuda_graph)
    device = "cpu" if device is None else device
    artifact = pick(
        opened,
        device=device,
        width=width,
        format=format,
        precision=precision,
        pinned_lambda=pinned_lambda,
    )
    return open_artifact(opened, artifact, device=device, threads=threads, cuda_graph=cuda_graph)


def _check_alone(*choices: float | str | None) -> None:
    if any(choice is not None for choice in choices):
        names = ("width", "format", "precision", "pinned_lambda")
        given = " and ".join(
            f"{name}={choice!r}" for name, choice in zip(names, choices, strict=True)
            if choice is not None
        )  # fmt: skip
        raise InputError(
            f"open_runner has an operating point and {given}: the operating point says that, "
            "leave out one of them"
        )


def _open_point(
    bundle: Bundle,
    point: str | Path | OperatingPointFile,
    device: str | None,
    threads: int | None,
    cuda_graph: bool,
) -> Runner:
    if not isinstance(point, OperatingPointFile):
        point = OperatingPointFile.load(point)
    runner = open_artifact(
        bundle,
        point.artifact_in(bundle),
        device=point.runner_device if device is None else device,
        threads=point.threads if threads is None else threads,
        cuda_graph=cuda_graph,
    )
    runner.default_lambda = point.lam
    return runner


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
