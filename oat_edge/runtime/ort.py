"""ONNX Runtime as a runner."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from oat_edge.errors import FallbackError, InputError
from oat_edge.require import require
from oat_edge.runtime.runner import Float32, Runner, RunnerIO

PROVIDERS = {"cpu": "CPUExecutionProvider"}


class OrtRunner(Runner):
    """An ONNX file in ONNX Runtime, on the CPU.

    threads: intra-op threads; None lets ONNX Runtime use one per physical core.
    """

    def __init__(
        self, path: Path, io: RunnerIO, *, device: str = "cpu", threads: int | None = None
    ) -> None:
        ort = require("onnxruntime", purpose="running ONNX files")
        if device not in PROVIDERS:
            raise InputError(f"device is '{device}': ONNX Runtime here runs {sorted(PROVIDERS)}")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only; its warnings are about hardware probing
        if threads is not None:
            options.intra_op_num_threads = threads
        provider = PROVIDERS[device]
        try:
            # Read first: a path with odd characters is then no concern of the C++ side.
            self._session: Any = ort.InferenceSession(
                path.read_bytes(), sess_options=options, providers=[provider]
            )
        except Exception as error:  # ONNX Runtime's errors share no public base class
            text = str(error).splitlines()[0]
            raise InputError(f"{path} does not load in ONNX Runtime ({text})") from error
        if self._session.get_providers()[0] != provider:
            raise FallbackError(
                f"ONNX Runtime took {self._session.get_providers()[0]} instead of {provider}"
            )
        names = [tensor.name for tensor in self._session.get_inputs()]
        expected = ["image"] if io.pinned_lambda is not None else ["image", "lambda"]
        if names != expected:
            raise InputError(f"{path} has inputs {names}, expected {expected}: export again")
        self.io = io
        self.backend = f"onnxruntime-{device}"
        self.device = device
        self.precision = "fp32"
        self.threads = threads or os.cpu_count() or 1
        self.versions = {"onnxruntime": ort.__version__}

    def _run(self, image: Float32, lam: Float32) -> Float32:
        feeds = {"image": image}
        if self.io.pinned_lambda is None:
            feeds["lambda"] = lam
        logits: Float32 = self._session.run(("logits",), feeds)[0]
        return logits

    def close(self) -> None:
        """Drop the session; its memory goes with it."""
        self._session = None
