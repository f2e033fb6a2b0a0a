"""An engine file, loaded: what TensorRT or TensorRT-RTX says about it and does with it.

Every call of the libraries that running an engine needs is here. Their own words come through
the logger, so errors carry the first thing it was told.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oat_edge.errors import DependencyError, InputError
from oat_edge.runtime import cuda_work, trt_api
from oat_edge.runtime.runner import RunnerIO

EXPORT_AGAIN = "export again with `oat-edge export`"


class LoadedEngine:
    """An engine on the device. The thread that uses it has made CUDA's context current.

    sha256: what the content must have: an engine is executable code. host_code: the engine is
    version-compatible, it brings a small runtime that has to be allowed.
    Raises `InputError` for a file that does not load.
    """

    def __init__(
        self,
        library: trt_api.Library,
        path: Path,
        *,
        sha256: str | None = None,
        host_code: bool = False,
    ) -> None:
        try:
            plan = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): {EXPORT_AGAIN}") from None
        if sha256 is not None and hashlib.sha256(plan).hexdigest() != sha256:
            raise InputError(f"{path} has changed (its sha256 differs): {EXPORT_AGAIN}")
        self.path = path
        self.library = library
        self._errors = _Errors()
        self._logger = trt_api.make_logger(library, self._errors.write)
        self._runtime: Any = None
        self._engine: Any = None
        self._config: Any = None
        self._profiler: Any = None
        try:
            self._runtime = library.api.Runtime(self._logger)
        except TypeError:  # what pybind makes of a null pointer
            raise self._failure("does not load") from None
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            why = self._errors.take()
            rtx = library.format == "trt-rtx"
            other = ", or with --format trt if TensorRT-RTX does not know this GPU" if rtx else ""
            text = f"{path} does not load in {library.name} ({why}): {EXPORT_AGAIN}{other}"
            raise InputError(text)
        self._config = trt_api.runtime_config(library, self._engine)

    def check_io(self, io: RunnerIO) -> tuple[int, int]:
        """Fewest and most images per request; `InputError` if inputs or outputs are not `io`'s."""
        engine = self._engine
        found = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            takes = engine.get_tensor_mode(name) == self.library.api.TensorIOMode.INPUT
            shape = tuple(engine.get_tensor_shape(name))[1:]
            found[name] = ("in" if takes else "out", engine.get_tensor_dtype(name).name, *shape)
        expected: dict[str, tuple[Any, ...]] = {"image": ("in", "FLOAT", *io.image_shape)}
        if io.pinned_lambda is None:
            expected["lambda"] = ("in", "FLOAT")
        expected["logits"] = ("out", "FLOAT", io.num_classes)
        if found != expected:
            raise InputError(f"{self.path} has {found}, expected {expected}: {EXPORT_AGAIN}")
        ranges = {}
        for name in expected:
            if name != "logits":
                fewest, _, most = engine.get_tensor_profile_shape(name, 0)
                ranges[name] = (int(fewest[0]), int(most[0]))
        # The builder lets them differ: such an engine would fail at some batch sizes only.
        if len(set(ranges.values())) != 1:
            raise InputError(f"{self.path} takes batches {ranges}, expected one: {EXPORT_AGAIN}")
        return ranges["image"]

    def information(self, context: Any) -> str:
        """The engine inspector's JSON, for the batch size of `context`.

        Of a dynamic batch it names the types only for the shapes of a context.
        """
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = context
        text: str = inspector.get_engine_information(self.library.api.LayerInformationFormat.JSON)
        return text

    def new_context(self) -> Any:
        """What runs the engine, with working memory of its own. Drop it before `release`."""
        self._errors.clear()
        engine, config = self._engine, self._config
        if config is None:
            context = engine.create_execution_context()
        else:
            context = engine.create_execution_context(config)
        if context is None:
            raise self._failure("gets no memory to run")
        return context

    def bind(self, context: Any, batch: int, addresses: dict[str, int], io: RunnerIO) -> None:
        """Tell a context its batch size, and where its tensors lie on the device."""
        self._errors.clear()
        shapes = {"image": (batch, *io.image_shape), "lambda": (batch,)}
        for name, address in addresses.items():
            if name in shapes and not context.set_input_shape(name, shapes[name]):
                raise self._failure(f"refuses a batch of {batch}")
            if not context.set_tensor_address(name, address):
                raise self._failure(f"refuses the memory of {name}")
        if missing := context.infer_shapes():
            raise self._failure(f"does not know the shape of {', '.join(missing)}")

    def enqueue(self, context: Any, stream: cuda_work.Stream) -> None:
        """Queue the network's kernels."""
        self._errors.clear()
        if not context.execute_async_v3(stream.handle):
            raise self._failure("fails")

    def profile(self, context: Any, stream: cuda_work.Stream, *, runs: int) -> dict[str, float]:
        """Layer -> median milliseconds over `runs` requests, in the order in which they run."""
        request_ms: dict[str, float] = {}
        self._profiler = _profiler(self.library, request_ms)  # kept: the context only points to it
        context.profiler = self._profiler

        def request() -> None:
            self.enqueue(context, stream)  # waits for its kernels and reports each
            stream.synchronize()

        return median_ms(request, request_ms, runs=runs)

    def release(self) -> None:
        """Drop the engine, then the runtime. Twice is harmless."""
        self._profiler = None
        self._config = None
        self._engine = None
        self._runtime = None

    def _failure(self, what: str) -> DependencyError:
        return DependencyError(
            f"{self.path} {what} in {self.library.name} ({self._errors.take()}): see what else "
            "uses the GPU and run again; if that does not help, export again"
        )


class _Errors:
    """What the library said went wrong; the first explains those that follow."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def write(self, severity: str, text: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._texts.append(" ".join(text.split()))

    def take(self) -> str:
        first = self._texts[0] if self._texts else "it gave no reason"
        self.clear()
        return first

    def clear(self) -> None:
        self._texts.clear()


def median_ms(
    request: Callable[[], None], request_ms: dict[str, float], *, runs: int
) -> dict[str, float]:
    """Layer -> median over `runs` requests, each of which adds the times of its layers up in

    `request_ms`.
    """
    all_ms: dict[str, list[float]] = {}
    for _ in range(runs):
        request_ms.clear()
        request()
        for name, ms in request_ms.items():
            all_ms.setdefault(name, []).append(ms)
    return {name: statistics.median(values) for name, values in all_ms.items()}


def _profiler(library: trt_api.Library, total: dict[str, float]) -> Any:
    """What the library tells the time of each layer, after each request."""

    class Profiler(library.api.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            library.api.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            total[layer_name] = total.get(layer_name, 0.0) + ms

    return Profiler()
