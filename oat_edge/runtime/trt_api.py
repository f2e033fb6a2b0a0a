"""Where TensorRT 10.3 to 11.4 and TensorRT-RTX differ. All other code uses names they share.

TensorRT 11 and RTX know strongly typed networks only: precision is what the ONNX file says. From
10.3 on they can be asked for, which counts as solid from 10.12; before that a build that fails is
tried once more weakly typed, with builder flags, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oat_edge.errors import DependencyError
from oat_edge.require import require
from oat_edge.runtime.recipe import LIBRARIES

# format -> first version that has what is needed, first that nobody has tried
SUPPORTED = {"trt": ((10, 3), (12,)), "trt-rtx": ((1, 4), (2,))}
STRONG_IS_SOLID = (10, 12)
JETSON = (
    "on a Jetson it comes with JetPack (apt install tensorrt python3-libnvinfer; a virtual "
    "environment needs --system-site-packages)"
)


@dataclass(frozen=True, slots=True)
class Library:
    """TensorRT or TensorRT-RTX, loaded."""

    format: str
    """ "trt" or "trt-rtx"."""
    api: Any
    """The module."""
    version: str

    @property
    def name(self) -> str:
        """Name and version, e.g. "tensorrt 10.3.0"."""
        return f"{LIBRARIES[self.format]} {self.version}"

    @property
    def times_kernels(self) -> bool:
        """Whether building measures kernels, which a timing cache remembers; RTX does neither."""
        return self.format == "trt"

    @property
    def may_be_weak(self) -> bool:
        """Whether a strongly typed build that fails may be tried weakly typed."""
        return self.format == "trt" and _numbers(self.version) < STRONG_IS_SOLID


def load(format: str) -> Library:
    """Import the library of an engine format; `DependencyError` says how to get it."""
    module = LIBRARIES[format]
    try:
        api = require(module, purpose=f"building {format} engines")
    except DependencyError as error:
        hint = f"; {JETSON}" if format == "trt" else ""
        raise DependencyError(f"{error}{hint}") from error
    version = str(api.__version__)
    first, unknown = SUPPORTED[format]
    if not first <= _numbers(version) < unknown:
        wanted = f"{'.'.join(map(str, first))} or later, below {'.'.join(map(str, unknown))}"
        raise DependencyError(f"{module} is {version}: expected {wanted}")
    return Library(format, api, version)


def network_flags(library: Library, *, strong: bool = True) -> int:
    """Flags of a new network. EXPLICIT_BATCH is gone in 11 and means nothing in 10."""
    return 1 << int(library.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if strong else 0


def set_weak_precision(library: Library, config: Any, precision: str) -> None:
    """Allow the builder the precisions that a weakly typed network needs (10.3 to 10.11 only)."""
    flags = {"fp32": (), "fp16": ("FP16",), "int8": ("FP16", "INT8")}[precision]
    for flag in flags:
        config.set_flag(getattr(library.api.BuilderFlag, flag))


def runtime_config(library: Library, engine: Any) -> Any:
    """What RTX needs to be told to make an execution context; None for TensorRT.

    By default RTX runs general kernels until those for the batch size are compiled in the
    background: figures would drift, and a CUDA graph would keep the general ones.
    """
    if library.format == "trt-rtx":
        config = engine.create_runtime_config()
        eager = library.api.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        return config
    return None


def make_logger(library: Library, write: Callable[[str, str], None]) -> Any:
    """A logger that hands (severity, text) to `write`, severity as in "ERROR".

    Without a GPU the library follows real errors with one about the missing driver: left out.
    """

    class Logger(library.api.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            library.api.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if not ("catchCudaError" in text and " 35" in text):
                write(severity.name, text)

    return Logger()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
