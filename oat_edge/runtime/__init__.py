"""Running exported networks. `open_runner` is all that an application needs."""

from __future__ import annotations

from pathlib import Path

from oat_edge.bundle import Artifact, Bundle
from oat_edge.runtime.runner import Runner, RunnerIO

__all__ = ["Runner", "RunnerIO", "open_artifact", "open_runner"]


def open_runner(
    bundle: str | Path,
    width: float | None = None,
    *,
    device: str = "cpu",
    pinned_lambda: float | None = None,
    threads: int | None = None,
) -> Runner:
    """Open one width of a bundle on a device.

    width: one that was exported; None takes the widest. pinned_lambda: open the file with that λ
    folded in instead of the one with λ as an input. threads: CPU threads; None lets the back
    end choose.
    The file's hash is checked first. Raises `InputError` (bad bundle, no such width),
    `DependencyError` (no ONNX Runtime), `FallbackError`.
    """
    opened = Bundle.open(bundle)
    if width is None:
        fitting = [a for a in opened.of_format("onnx") if a.pinned_lambda == pinned_lambda]
        width = max((artifact.width for artifact in fitting), default=None)
    artifact = opened.select(format="onnx", width=width, pinned_lambda=pinned_lambda)
    return open_artifact(opened, artifact, device=device, threads=threads)


def open_artifact(
    bundle: Bundle, artifact: Artifact, *, device: str = "cpu", threads: int | None = None
) -> Runner:
    """Open one artifact of a bundle whose hash has been checked here."""
    from oat_edge.runtime.ort import OrtRunner

    io = RunnerIO(
        image_shape=bundle.spec.image_shape,
        num_classes=bundle.spec.num_classes,
        lambdas=bundle.spec.lambdas,
        pinned_lambda=artifact.pinned_lambda,
    )
    return OrtRunner(bundle.checked_path(artifact), io, device=device, threads=threads)
