"""An engine at work: buffers made once, kernels queued or replayed as a CUDA graph, and the clock.

N batch, C channels, H/W pixels, K classes
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.errors import DependencyError
from oat_edge.runtime import cuda, cuda_work
from oat_edge.runtime.runner import DeviceTimes, Float32, RunnerIO
from oat_edge.runtime.trt_engine import LoadedEngine

# Each graph keeps an execution context, and so the network's whole working memory.
MAX_GRAPHS = 8
ALIGNMENT = 256  # that TensorRT expects of a tensor's address


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch size: views of page-locked memory, and what queues the kernels."""

    image: Float32
    lam: Float32
    inputs: npt.NDArray[np.uint8]
    """λ and images as they lie in memory: one copy to the device."""
    logits: Float32
    enqueue: Callable[[], None]


class Session:
    """An engine with its buffers, contexts and graphs. One thread at a time."""

    def __init__(
        self, engine: LoadedEngine, io: RunnerIO, low: int, high: int, *, cuda_graph: bool
    ) -> None:
        self.remarks: tuple[str, ...] = () if cuda_graph else ("cuda_graph: off",)
        self._engine = engine
        self._io = io
        self._low, self._high = low, high
        self._cuda_graph = cuda_graph
        self._owned: list[cuda_work.Owned] = []
        self._batches: dict[int, Batch] = {}
        self._graphs: dict[int, tuple[cuda_work.Graph, Any]] = {}
        self._plain: Any = None
        self._plain_size: int | None = None
        self._timed = False
        self._image_bytes = 4 * int(np.prod(io.image_shape))
        # λ lies in front of the images, in a place that is large enough at every batch size.
        self._lam_bytes = _aligned(4 * high) if io.pinned_lambda is None else 0
        try:
            self._stream: cuda_work.Stream = self._own(cuda_work.Stream())
            self._inputs: cuda_work.DeviceBuffer = self._own(
                cuda_work.DeviceBuffer(self._lam_bytes + high * self._image_bytes)
            )
            self._logits: cuda_work.DeviceBuffer = self._own(
                cuda_work.DeviceBuffer(4 * high * io.num_classes)
            )
            self._events: list[cuda_work.Event] = [self._own(cuda_work.Event()) for _ in range(4)]
            self._host = [cuda_work.pinned(self._inputs.size), cuda_work.pinned(self._logits.size)]
            self._plain = engine.new_context()
        except BaseException:
            self.close()
            raise

    def run(self, image: Float32, lam: Float32) -> Float32:
        """Logits of a checked batch, (N, K), the caller's own."""
        cuda.make_current()
        batch = self._filled(image, lam)
        stream, (sent, arrived, computed, done) = self._stream, self._events
        self._timed = False
        sent.record(stream)
        self._inputs.copy_from(batch.inputs, stream)
        arrived.record(stream)
        batch.enqueue()
        computed.record(stream)
        self._logits.copy_to(batch.logits, stream)
        done.record(stream)
        stream.synchronize()
        self._timed = True
        return batch.logits[: len(image)].copy()

    def information(self) -> str:
        """What the library tells of the engine, at the largest batch size."""
        self._bind(self._plain, self._high)
        return self._engine.information(self._plain)

    def times(self) -> DeviceTimes | None:
        """Of the last request, by its events."""
        if not self._timed:
            return None
        cuda.make_current()
        sent, arrived, computed, done = self._events
        return DeviceTimes(
            h2d_ms=arrived.ms_since(sent),
            compute_ms=computed.ms_since(arrived),
            d2h_ms=done.ms_since(computed),
        )

    def profile(self, image: Float32, lam: Float32, *, runs: int) -> dict[str, float]:
        """Layer -> median milliseconds, in a context of its own: a profiler slows its context."""
        cuda.make_current()
        batch, context = self._filled(image, lam), self._engine.new_context()
        self._bind(context, len(batch.image))
        self._inputs.copy_from(batch.inputs, self._stream)
        self._engine.enqueue(context, self._stream)  # the first one also prepares things
        self._stream.synchronize()
        return self._engine.profile(context, self._stream, runs=runs)

    def close(self) -> None:
        """Free all: what uses something before what is used."""
        # If the device has failed, the error has been reported; freeing goes on.
        with contextlib.suppress(DependencyError):
            cuda.make_current()
            if self._owned:
                self._stream.synchronize()
        self._batches.clear()
        for graph, _ in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._plain = None
        self._engine.release()
        self._host = []
        for thing in reversed(self._owned):
            thing.close()
        self._owned.clear()

    def _filled(self, image: Float32, lam: Float32) -> Batch:
        """The request in page-locked memory; its last image fills up the smallest batch."""
        size = max(len(image), self._low)
        batch = self._batches.get(size) or self._open(size)
        batch.image[: len(image)] = image
        batch.lam[: len(image)] = lam
        if size > len(image):
            batch.image[len(image) :] = image[-1]
            batch.lam[len(image) :] = lam[-1]
        return batch

    def _open(self, size: int) -> Batch:
        """Prepare a batch size at its first request."""
        inputs, logits = self._host
        inputs = inputs[: self._lam_bytes + size * self._image_bytes]
        lam = inputs[: 4 * size] if self._lam_bytes else np.zeros(4 * size, np.uint8)
        batch = Batch(
            image=inputs[self._lam_bytes :].view(np.float32).reshape(size, *self._io.image_shape),
            lam=lam.view(np.float32),
            inputs=inputs,
            logits=logits.view(np.float32).reshape(-1, self._io.num_classes)[:size],
            enqueue=self._queue(size),
        )
        self._batches[size] = batch
        return batch

    def _queue(self, size: int) -> Callable[[], None]:
        """What queues the kernels of a batch size: its graph, or the library every time."""
        if not self._cuda_graph:
            return lambda: self._enqueue_plain(size)
        if len(self._graphs) == MAX_GRAPHS:
            remark = f"cuda_graph: only the first {MAX_GRAPHS} batch sizes have one"
        else:
            try:
                graph = self._capture(size)
                return lambda: graph.launch(self._stream)
            except DependencyError as error:
                what, _, _remedy = str(error).rpartition(": ")
                remark = f"cuda_graph: not captured at batch {size} ({what})"
        if remark not in self.remarks:
            self.remarks += (remark,)
        return lambda: self._enqueue_plain(size)

    def _capture(self, size: int) -> cuda_work.Graph:
        """Record a graph from a context of its own: a recorded context must not change."""
        context = self._engine.new_context()
        self._bind(context, size)
        # At its first request a context does things that cannot be recorded. It computes
        # whatever lies in the buffers; nobody looks at the result.
        self._engine.enqueue(context, self._stream)
        self._stream.synchronize()
        graph = cuda_work.Graph(self._stream, lambda: self._engine.enqueue(context, self._stream))
        self._graphs[size] = (graph, context)
        return graph

    def _enqueue_plain(self, size: int) -> None:
        if self._plain_size != size:
            self._plain_size = None
            self._bind(self._plain, size)
            self._plain_size = size
        self._engine.enqueue(self._plain, self._stream)

    def _bind(self, context: Any, size: int) -> None:
        addresses = {"image": self._inputs.address + self._lam_bytes}
        if self._lam_bytes:
            addresses["lambda"] = self._inputs.address
        addresses["logits"] = self._logits.address
        self._engine.bind(context, size, addresses, self._io)

    def _own(self, thing: Any) -> Any:
        self._owned.append(thing)
        return thing


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
