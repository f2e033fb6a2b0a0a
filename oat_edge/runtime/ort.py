"""ONNX Runtime as a runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oat_edge.errors import InputError, OatEdgeError
from oat_edge.runtime.ort_cuda import CudaRequests
from oat_edge.runtime.ort_profile import profile
from oat_edge.runtime.ort_session import (
    SessionConfig,
    check_nodes,
    error_line,
    load_library,
    open_session,
)
from oat_edge.runtime.runner import Float32, LayerTime, Runner, RunnerIO

# (device, precision of the file) -> what really computes, where that is something else: the CPU
# has no half-precision kernels, the GPU none for Q/DQ, and both compute in float32 between casts.
COMPUTED_AS = {("cpu", "fp16"): "fp16-emulated", ("cuda", "int8"): "int8-emulated"}


class OrtRunner(Runner):
    """An ONNX file in ONNX Runtime, on the CPU or on an NVIDIA GPU.

    precision: what the file carries. threads: intra-op threads on the CPU; None lets ONNX Runtime
    choose (one per physical core). cuda_graph: on a GPU, replay one CUDA graph per batch size.
    use_tf32: on a GPU, let float32 products be of TF32 factors.
    Raises `DependencyError` (no CUDA provider), `FallbackError` (it does not load, or does not
    run every node), `InputError`.
    """

    def __init__(
        self,
        path: Path,
        io: RunnerIO,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        threads: int | None = None,
        cuda_graph: bool = True,
        use_tf32: bool = False,
    ) -> None:
        self._config = SessionConfig(
            path=path,
            device=device,
            threads=threads,
            cuda_graph=cuda_graph and device == "cuda",
            use_tf32=use_tf32,
        )
        ort = load_library(device)
        self._on_gpu = CudaRequests(ort, self._config, io) if device == "cuda" else None
        self._session: Any = None if self._on_gpu else open_session(ort, self._config)
        _check_contract(self._on_gpu.session if self._on_gpu else self._session, path, io)
        self.path = path
        self.io = io
        self.backend = f"onnxruntime-{device}"
        self.device = device
        self.precision = COMPUTED_AS.get((device, precision), precision)
        if use_tf32 and (device, precision) == ("cuda", "fp32"):
            self.precision = "tf32"
        self.versions = {"onnxruntime": ort.__version__}
        self.remarks = self._on_gpu.remarks if self._on_gpu else ()

    @property
    def node_counts(self) -> dict[str, int]:
        """On a GPU, how many nodes each provider runs; empty if ONNX Runtime does not say."""
        return check_nodes(self._on_gpu.session, self._config) if self._on_gpu else {}

    def _run(self, image: Float32, lam: Float32) -> Float32:
        try:
            if self._on_gpu is None:
                logits: Float32 = self._session.run(("logits",), self._feeds(image, lam))[0]
            else:
                logits = self._on_gpu.run(image, lam)
                self.remarks = self._on_gpu.remarks
        except OatEdgeError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no public base class
            raise InputError(f"{self.path} fails in ONNX Runtime ({error_line(error)})") from error
        return logits

    def profile(self, image: Float32, lam: Float32, *, runs: int) -> list[LayerTime]:
        """Median time of each node over `runs` requests after a first one, as they run.

        Taken in a session of its own, without a CUDA graph; on a GPU each kernel is waited for.
        """
        if runs < 1:
            raise InputError(f"runs is {runs}: expected 1 or more")
        self.infer(image, lam)  # says what is wrong with a request, in the words of `infer`
        return profile(self._config, self._feeds(image, lam), runs=runs)

    def close(self) -> None:
        """Drop the session; its memory goes with it."""
        super().close()
        self._session = None
        if self._on_gpu is not None:
            self._on_gpu.close()

    def _feeds(self, image: Float32, lam: Float32) -> dict[str, Float32]:
        return {"image": image} | ({"lambda": lam} if self.io.pinned_lambda is None else {})


def _check_contract(session: Any, path: Path, io: RunnerIO) -> None:
    """Raise `InputError` unless inputs and outputs are those of DESIGN, section 5."""
    found = [_signature(tensor) for tensor in session.get_inputs()]
    expected: list[tuple[Any, ...]] = [("image", "tensor(float)", *io.image_shape)]
    if io.pinned_lambda is None:
        expected.append(("lambda", "tensor(float)"))
    if found != expected:
        raise InputError(f"{path} has inputs {found}, expected {expected}: export again")
    found = [_signature(tensor) for tensor in session.get_outputs()]
    if found != [("logits", "tensor(float)", io.num_classes)]:
        raise InputError(
            f"{path} has outputs {found}, expected logits of {io.num_classes} classes: export again"
        )


def _signature(tensor: Any) -> tuple[Any, ...]:
    """Name, element type, and the shape without the batch."""
    return (tensor.name, tensor.type, *tensor.shape[1:])
