"""ONNX Runtime as a runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oat_edge.errors import FallbackError, InputError
from oat_edge.require import require
from oat_edge.runtime.runner import Float32, Runner, RunnerIO

PROVIDERS = {"cpu": "CPUExecutionProvider"}


class OrtRunner(Runner):
    """An ONNX file in ONNX Runtime, on the CPU.

    threads: intra-op threads; None lets ONNX Runtime choose (one per physical core).
    """

    def __init__(
        self, path: Path, io: RunnerIO, *, device: str = "cpu", threads: int | None = None
    ) -> None:
        ort = require("onnxruntime", purpose="running ONNX files")
        if device not in PROVIDERS:
            raise InputError(f"device is '{device}': ONNX Runtime here runs {sorted(PROVIDERS)}")
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}: expected 1 or more")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only; its warnings are about hardware probing
        # Idle workers go to sleep at once. By default they spin on, and several resident engines
        # (one per width) then steal the cores from the one that runs: up to 2x, and energy.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        provider = PROVIDERS[device]
        try:
            # Read first: a path with odd characters is then no concern of the C++ side.
            self._session: Any = ort.InferenceSession(
                path.read_bytes(), sess_options=options, providers=[provider]
            )
        except Exception as error:  # ONNX Runtime's errors share no public base class
            raise InputError(f"{path} does not load in ONNX Runtime ({_line(error)})") from error
        if self._session.get_providers()[0] != provider:
            raise FallbackError(
                f"ONNX Runtime took {self._session.get_providers()[0]} instead of {provider}"
            )
        found = [_signature(tensor) for tensor in self._session.get_inputs()]
        expected: list[tuple[Any, ...]] = [("image", "tensor(float)", *io.image_shape)]
        if io.pinned_lambda is None:
            expected.append(("lambda", "tensor(float)"))
        if found != expected:
            raise InputError(f"{path} has inputs {found}, expected {expected}: export again")
        found = [_signature(tensor) for tensor in self._session.get_outputs()]
        if found != [("logits", "tensor(float)", io.num_classes)]:
            raise InputError(
                f"{path} has outputs {found}, expected logits of {io.num_classes} classes: "
                "export again"
            )
        self.path = path
        self.io = io
        self.backend = f"onnxruntime-{device}"
        self.device = device
        self.precision = "fp32"
        self.versions = {"onnxruntime": ort.__version__}

    def _run(self, image: Float32, lam: Float32) -> Float32:
        feeds = {"image": image}
        if self.io.pinned_lambda is None:
            feeds["lambda"] = lam
        try:
            logits: Float32 = self._session.run(("logits",), feeds)[0]
        except Exception as error:  # ONNX Runtime's errors share no public base class
            raise InputError(f"{self.path} fails in ONNX Runtime ({_line(error)})") from error
        return logits

    def close(self) -> None:
        """Drop the session; its memory goes with it."""
        super().close()
        self._session = None


def _signature(tensor: Any) -> tuple[Any, ...]:
    """Name, element type, and the shape without the batch."""
    return (tensor.name, tensor.type, *tensor.shape[1:])


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
