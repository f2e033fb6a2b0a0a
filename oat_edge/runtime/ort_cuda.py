"""Requests to ONNX Runtime on a GPU: memory of fixed addresses, and a CUDA graph per batch size.

N batch, C channels, H/W pixels, K classes
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from oat_edge.runtime.ort_session import (
    NotCapturableError,
    SessionConfig,
    error_line,
    open_session,
)
from oat_edge.runtime.runner import Float32, RunnerIO

# ONNX Runtime captures by itself after some plain requests: with these it is over for certain.
RUNS_TO_CAPTURE = 3
# The first version with a graph per shape; before it, another batch replayed the wrong one.
MANY_GRAPHS = (1, 18)


class BoundRequest:
    """One batch size: memory on the device, and the session bound to it."""

    def __init__(
        self,
        ort: Any,
        session: Any,
        io: RunnerIO,
        batch: int,
        *,
        place: str = "cuda",
        graph_id: int | None = None,
    ) -> None:
        """graph_id: number of the CUDA graph that is captured and replayed, above 0."""

        def on_device(*shape: int) -> Any:
            zeros = np.zeros(shape, dtype=np.float32)
            return ort.OrtValue.ortvalue_from_numpy(zeros, place, 0)

        self._session = session
        self._image = on_device(batch, *io.image_shape)
        self._lam = on_device(batch) if io.pinned_lambda is None else None
        self._logits = on_device(batch, io.num_classes)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("image", self._image)
        if self._lam is not None:
            self._binding.bind_ortvalue_input("lambda", self._lam)
        self._binding.bind_ortvalue_output("logits", self._logits)
        self._options = ort.RunOptions()
        if graph_id is not None:
            self._options.add_run_config_entry("gpu_graph_id", str(graph_id))

    def run(self, image: Float32, lam: Float32) -> Float32:
        """Copy in, run, wait, copy out.  image: (N, C, H, W), lam: (N,), both contiguous."""
        self._image.update_inplace(image)
        if self._lam is not None:
            self._lam.update_inplace(lam)
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        logits: Float32 = self._logits.numpy()
        return logits


class Gate:
    """Many go through together, or one alone.

    While ONNX Runtime captures a graph, CUDA refuses most calls of all other threads, and they
    spoil the capture.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._taken = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for one that is alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody is inside."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken)
            self._taken = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()


GATE = Gate()


class CudaRequests:
    """A session on the GPU that takes any batch size.

    The first request of a batch size in a thread is slow: kernels are chosen, and the graph is
    captured (ONNX Runtime keeps graphs by thread). Where that fails, requests run without a
    graph, and `remarks` says so.
    """

    def __init__(self, ort: Any, config: SessionConfig, io: RunnerIO) -> None:
        self.remarks: tuple[str, ...] = () if config.cuda_graph else ("cuda_graph: off",)
        self._ort, self._config, self._io = ort, config, io
        self._ids = itertools.count(1)
        # Of each thread, its requests by batch.
        self._local = threading.local()
        if config.cuda_graph and _numbers(ort.__version__) < MANY_GRAPHS:
            self._without_graphs(f"onnxruntime {ort.__version__} keeps one graph, needs 1.18")
        with GATE.alone():
            self.session: Any = self._open()

    def run(self, image: Float32, lam: Float32) -> Float32:
        """Logits (N, K) of image (N, C, H, W) and lam (N,), both contiguous."""
        request = self._known(len(image)) or self._first(image, lam)
        with GATE.together():
            return request.run(image, lam)

    def close(self) -> None:
        """Drop the session and its memory."""
        self._local = threading.local()
        self.session = None

    def _open(self) -> Any:
        try:
            return open_session(self._ort, self._config)
        except NotCapturableError as error:
            self._without_graphs(error_line(error))
            return open_session(self._ort, self._config)

    def _known(self, batch: int) -> BoundRequest | None:
        kept: dict[int, BoundRequest] = self._local.__dict__.setdefault("requests", {})
        return kept.get(batch)

    def _first(self, image: Float32, lam: Float32) -> BoundRequest:
        with GATE.alone():
            if self._config.cuda_graph:
                reason = self._capture(image, lam)
                if reason is not None:
                    self._without_graphs(reason)
                    # Nothing holds the old session now: what it was capturing ends with it.
                    self.close()
                    self.session = open_session(self._ort, self._config)
            return self._known(len(image)) or self._keep(image, lam, 1, None)

    def _capture(self, image: Float32, lam: Float32) -> str | None:
        """Why there is no graph of this batch size; None: there is one."""
        try:
            self._keep(image, lam, RUNS_TO_CAPTURE, next(self._ids))
        except Exception as error:  # ONNX Runtime's errors share no public base class
            return error_line(error)
        return None

    def _keep(self, image: Float32, lam: Float32, runs: int, graph_id: int | None) -> BoundRequest:
        request = BoundRequest(self._ort, self.session, self._io, len(image), graph_id=graph_id)
        for _ in range(runs):
            request.run(image, lam)
        self._local.__dict__.setdefault("requests", {})[len(image)] = request
        return request

    def _without_graphs(self, reason: str) -> None:
        self._config = replace(self._config, cuda_graph=False)
        self.remarks = (*self.remarks, f"cuda_graph: not captured ({reason})")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
