"""An engine of TensorRT or TensorRT-RTX as a runner: CUDA's driver and numpy, no torch."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

from oat_edge.errors import BuildError, InputError
from oat_edge.runtime import cuda, trt_api
from oat_edge.runtime.recipe import LIBRARIES, Recipe
from oat_edge.runtime.runner import DeviceTimes, Float32, LayerTime, Runner, RunnerIO
from oat_edge.runtime.trt_engine import LoadedEngine
from oat_edge.runtime.trt_layers import (
    Layer,
    check_precision,
    count_convolutions,
    layers_from_json,
)
from oat_edge.runtime.trt_session import Session

# What is not a convolution may then compute in half precision too.
WEAK = "typing: weak, the library was allowed a precision (it is too old for strong types)"


@dataclass(frozen=True, slots=True)
class Observation:
    """What an engine's layers tell of the precision that they compute in."""

    convolutions: dict[str, int]
    """How many convolutions compute in each precision."""
    kinds: dict[str, str]
    """Name of a layer -> the library's word for what it is."""
    remarks: tuple[str, ...]


def observe(information: str, requested: str, *, what: str) -> Observation:
    """Read the engine inspector's JSON; raises `FallbackError` if it is not as requested.

    Parts of an engine may be opaque, on some versions all of it. They were judged when it was
    built; here a remark says that they were not seen. what: names the engine in the message.
    """
    layers: list[Layer] = []
    reason = ""
    try:
        layers = layers_from_json(information)
    except BuildError as error:
        reason = str(error)
    counts = count_convolutions(layers)
    told = {kind: num for kind, num in counts.items() if kind != "unknown"}
    if told:
        check_precision(told, requested, what=what)
    if told != counts or not told:
        which = f"{counts['unknown']} convolutions" if told else "the convolutions"
        reason = reason or f"the library does not tell what {which} compute in"
    remarks = (f"precision: as the ONNX file has it, not as seen ({reason})",) if reason else ()
    return Observation(counts, {layer.name: layer.kind for layer in layers}, remarks)


class TrtRunner(Runner):
    """An engine file on the first visible GPU.

    sha256: the hash that the file must have; an engine is executable code. typing: how it was
    built, "strong" or "weak". Threads may share a runner; their requests run one after the other.
    cuda_graph: replay the network's kernels by one call per request, recorded at the first
    request of each batch size. Where that is not done, `remarks` says so.
    Raises `DependencyError` (no GPU, no library, the device fails), `InputError` (an engine that
    does not load or is another network's), `FallbackError` (it computes in another precision).
    """

    convolutions: dict[str, int]
    """How many convolutions really compute in each precision."""

    def __init__(
        self,
        path: Path,
        io: RunnerIO,
        *,
        recipe: Recipe,
        sha256: str | None = None,
        typing: str = "strong",
        cuda_graph: bool = True,
    ) -> None:
        gpu = cuda.gpu()  # first: without a driver TensorRT's runtime crashes instead of failing
        library = trt_api.load(recipe.format)
        cuda.make_current()  # before the runtime is made: it takes the thread's context
        module = LIBRARIES[recipe.format]
        self.path = path
        self.io = io
        self.backend = module.replace("_", "-")
        self.device = "cuda"
        self.versions = {module: library.version, "cuda": gpu.cuda}
        engine = LoadedEngine(library, path, sha256=sha256, host_code=recipe.version_compatible)
        try:
            low, high = engine.check_io(io)
            session = Session(engine, io, low, high, cuda_graph=cuda_graph)
        except BaseException:
            engine.release()
            raise
        self.batch_limit = high
        self._session = session
        self._lock = threading.Lock()
        self._release = weakref.finalize(self, session.close)
        try:
            seen = observe(session.information(), recipe.precision, what=str(path))
            if typing == "weak":
                seen = replace(seen, remarks=(*seen.remarks, WEAK))
        except BaseException:
            self.close()
            raise
        self.precision = recipe.precision
        self.convolutions = seen.convolutions
        self._seen = seen
        self.remarks = seen.remarks + session.remarks

    def _run(self, image: Float32, lam: Float32) -> Float32:
        with self._lock:
            self._check_open()
            logits = self._session.run(image, lam)
            self.remarks = self._seen.remarks + self._session.remarks
            return logits

    def device_times(self) -> DeviceTimes | None:
        """Of the last request; None before the first and after one that failed.

        Asking takes time of its own: ask outside the span that is timed.
        """
        with self._lock:
            return None if self.closed else self._session.times()

    def profile(self, image: Float32, lam: Float32, *, runs: int) -> list[LayerTime]:
        """Median time of each layer over `runs` requests, without a CUDA graph."""
        if runs < 1:
            raise InputError(f"runs is {runs}: expected 1 or more")
        self.infer(image, lam)  # checks both
        lam_n = self._check_lambda(lam, len(image))
        with self._lock:
            self._check_open()
            times = self._session.profile(image, lam_n, runs=runs)
        # What the library adds to change a layout is not always among the layers it lists.
        kinds = self._seen.kinds
        return [LayerTime(name, kinds.get(name, "other"), ms) for name, ms in times.items()]

    def close(self) -> None:
        """Free all that is held on the device; a request under way is waited for."""
        with self._lock:
            super().close()
            self._release()

    def _check_open(self) -> None:
        if self.closed:  # by another thread, while this one waited
            raise InputError(f"this {self.backend} runner is closed: open it again")
