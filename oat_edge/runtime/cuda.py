"""What running an engine needs of CUDA: memory, streams, events and graphs. No torch, no toolkit.

It is the driver's own API (libcuda.so.1), not the runtime library (libcudart): the driver's is on
every machine whose GPU works, a Jetson too, keeps its name and its old symbols from one version
to the next (all those used here: 11.4 to 13), and TensorRT-RTX carries its libcudart inside, so
that there need be none to find. Both share the device's primary context, which is used here.

Failed calls raise `DependencyError`: the arguments are ours, so it is the device that fails.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import threading
import weakref
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.errors import DependencyError

LIBRARY = "libcuda.so.1"
# Exported name -> arguments. Handles are c_void_p; device memory is c_uint64, never a pointer.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
}
# cuda.h: CUresult, CUdevice_attribute, CUstream_flags, CUstreamCaptureMode
OUT_OF_MEMORY, NO_DEVICE = 2, 100
MULTIPROCESSORS, CAPABILITY_MAJOR, CAPABILITY_MINOR = 16, 75, 76
NON_BLOCKING = 1  # never waits for the default stream, which others may use
THREAD_LOCAL = 1  # calls of other threads do not spoil a capture
CONTAINER = "in a container: docker run --gpus all, on a Jetson --runtime nvidia"


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first visible GPU and its driver."""

    name: str
    compute_capability: str
    """E.g. "9.0"."""
    cuda: str
    """Newest CUDA version that the driver serves, e.g. "13.0"."""
    multiprocessors: int
    """How many of them: boards of one family differ in it, and so do their engines."""
    memory_mb: float
    """All of it (10^6 bytes); a Jetson shares it with the CPU."""


def gpu() -> Gpu:
    """The GPU that is used; raises `DependencyError` if there is none, or no working driver.

    Which of several it is, CUDA_VISIBLE_DEVICES says.
    """
    device = _device()
    version, major, minor, count, size = c_int(), c_int(), c_int(), c_int(), c_size_t()
    name = ctypes.create_string_buffer(256)
    call("cuDriverGetVersion", byref(version))
    call("cuDeviceGetName", name, len(name), device)
    call("cuDeviceGetAttribute", byref(major), CAPABILITY_MAJOR, device)
    call("cuDeviceGetAttribute", byref(minor), CAPABILITY_MINOR, device)
    call("cuDeviceGetAttribute", byref(count), MULTIPROCESSORS, device)
    call("cuDeviceTotalMem_v2", byref(size), device)
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        multiprocessors=count.value,
        memory_mb=size.value / 1e6,
    )


def memory_used_mb() -> float:
    """Memory in use on the whole GPU (10^6 bytes), by this process and all others."""
    make_current()
    free, total = c_size_t(), c_size_t()
    call("cuMemGetInfo_v2", byref(free), byref(total))
    return (total.value - free.value) / 1e6


def make_current() -> None:
    """Make the primary context the calling thread's: all that follows needs it."""
    call("cuCtxSetCurrent", _primary().handle)


def call(name: str, *arguments: Any) -> None:
    """Call a function of the driver; raises `DependencyError` with its name and CUDA's text."""
    code = getattr(_library(), name)(*arguments)
    if code:
        remedy = "run again; if it fails again, `oat-edge doctor` looks at the device"
        if code == OUT_OF_MEMORY:
            remedy = "close what else uses the GPU, or export with a smaller --batch"
        raise DependencyError(f"{name} failed ({_text(code)}): {remedy}")


class Owned:
    """Something of CUDA's: freed once, by `close`, with its last reference or at exit."""

    def __init__(self, free: str, handle: int | None) -> None:
        self.handle = handle
        self.close = weakref.finalize(self, _free, free, handle)

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Stream(Owned):
    """A queue of work for the device."""

    def __init__(self) -> None:
        super().__init__("cuStreamDestroy_v2", _create("cuStreamCreate", NON_BLOCKING))

    def synchronize(self) -> None:
        """Wait until all of it is done."""
        call("cuStreamSynchronize", self.handle)


class Event(Owned):
    """A moment on the device's own clock."""

    def __init__(self) -> None:
        super().__init__("cuEventDestroy_v2", _create("cuEventCreate", 0))

    def record(self, stream: Stream) -> None:
        """The moment when what `stream` holds by now is done."""
        call("cuEventRecord", self.handle, stream.handle)

    def synchronize(self) -> None:
        """Wait for the moment."""
        call("cuEventSynchronize", self.handle)

    def ms_since(self, earlier: Event) -> float:
        """Milliseconds from `earlier` to here; both have passed."""
        elapsed = c_float()
        call("cuEventElapsedTime", byref(elapsed), earlier.handle, self.handle)
        return elapsed.value


class DeviceBuffer(Owned):
    """Memory of the device, at `address` (a multiple of 256), `size` bytes."""

    def __init__(self, size: int) -> None:
        make_current()
        address = c_uint64()
        call("cuMemAlloc_v2", byref(address), size)
        super().__init__("cuMemFree_v2", address.value)
        self.address = address.value
        self.size = size

    def copy_from(self, host: npt.NDArray[Any], stream: Stream) -> None:
        """Queue a copy of `host`, whole, to the start of this memory.

        It only runs beside other work if `host` is page-locked; it must not change until then.
        """
        self._check(host)
        source, size = host.ctypes.data, host.nbytes
        call("cuMemcpyHtoDAsync_v2", self.address, source, size, stream.handle)

    def copy_to(self, host: npt.NDArray[Any], stream: Stream) -> None:
        """Queue a copy of the start of this memory that fills `host`."""
        self._check(host)
        call("cuMemcpyDtoHAsync_v2", host.ctypes.data, self.address, host.nbytes, stream.handle)

    def _check(self, host: npt.NDArray[Any]) -> None:
        # What CUDA would answer to these is a fault of the device or foreign memory.
        if not host.flags.c_contiguous or host.nbytes > self.size:
            raise ValueError(f"{host.nbytes} bytes for a buffer of {self.size}, or not contiguous")
        if not self.close.alive:
            raise ValueError("the buffer is closed")


class Graph(Owned):
    """The work that a function queues, recorded once, queued again by one call.

    What the work uses (memory, execution contexts) must outlive it.
    """

    def __init__(self, stream: Stream, work: Callable[[], None]) -> None:
        make_current()
        graph, replay = c_void_p(), c_void_p()
        # Garbage of another owner, freed by this thread meanwhile, would spoil the capture.
        collects = gc.isenabled()
        gc.disable()
        try:
            call("cuStreamBeginCapture_v2", stream.handle, THREAD_LOCAL)
            self._record(stream, work, graph)
        finally:
            if collects:
                gc.enable()
        try:
            call("cuGraphInstantiateWithFlags", byref(replay), graph, 0)
        finally:
            _discard(graph)
        super().__init__("cuGraphExecDestroy", replay.value)

    def _record(self, stream: Stream, work: Callable[[], None], graph: c_void_p) -> None:
        try:
            work()
        except BaseException:
            # The stream must leave its recording state whatever happened; the error is known.
            _library().cuStreamEndCapture(stream.handle, byref(graph))
            _discard(graph)
            raise
        call("cuStreamEndCapture", stream.handle, byref(graph))

    def launch(self, stream: Stream) -> None:
        """Queue the work."""
        call("cuGraphLaunch", self.handle, stream.handle)


def pinned(size: int) -> npt.NDArray[np.uint8]:
    """Page-locked host memory of `size` bytes, which the device copies to and from on its own.

    It is freed with the last array that looks at it, at the latest when the interpreter ends.
    """
    address = _create("cuMemHostAlloc", size, 0)
    assert address is not None
    memory = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(memory, _free, "cuMemFreeHost", address)
    return np.frombuffer(memoryview(memory), dtype=np.uint8)


class _Primary:
    """The device's primary context, retained."""

    def __init__(self) -> None:
        device, handle = _device(), c_void_p()
        call("cuDevicePrimaryCtxRetain", byref(handle), device)
        self.handle = handle
        # At exit finalizers run in the reverse of the order in which they were made: as nothing
        # else is made before it, this one is the last.
        weakref.finalize(self, _library().cuDevicePrimaryCtxRelease_v2, device)


_lock = threading.Lock()
_retained: list[_Primary] = []


def _primary() -> _Primary:
    if not _retained:
        with _lock:
            if not _retained:
                _retained.append(_Primary())
    return _retained[0]


@functools.cache
def _library() -> ctypes.CDLL:
    """The driver's library with its signatures; `DependencyError` if it is not there or too old."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        what = "is not there" if "No such file" in str(error) else f"does not load ({error})"
        raise DependencyError(
            f"{LIBRARY} {what}, but a GPU needs it: install NVIDIA's driver ({CONTAINER})"
        ) from None
    for name, arguments in SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise DependencyError(
                f"{LIBRARY} has no {name}: expected the driver of CUDA 11.4 or later, update it"
            ) from None
        function.argtypes, function.restype = arguments, c_int
    return library


def _device() -> int:
    """The first visible device, of a driver that works."""
    code = _library().cuInit(0)
    count, device = c_int(), c_int()
    if code == 0:
        call("cuDeviceGetCount", byref(count))
    if code == NO_DEVICE or (code == 0 and count.value == 0):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        setting = "not set" if visible is None else f"'{visible}'"
        raise DependencyError(
            f"CUDA sees no GPU (CUDA_VISIBLE_DEVICES is {setting}): expected one; look at the "
            f"variable and at nvidia-smi ({CONTAINER})"
        )
    if code:
        raise DependencyError(
            f"cuInit failed ({_text(code)}): NVIDIA's driver does not work; nvidia-smi may say why"
        )
    call("cuDeviceGet", byref(device), 0)
    return device.value


def _create(name: str, *arguments: Any) -> int | None:
    """Call a function whose first argument receives a handle."""
    make_current()
    handle = c_void_p()
    call(name, byref(handle), *arguments)
    return handle.value


def _free(name: str, handle: int | None) -> None:
    # Results are not looked at: after a fault of the device every call fails, and the one that
    # was first has been reported.
    library = _library()
    library.cuCtxSetCurrent(_primary().handle)
    getattr(library, name)(handle)


def _discard(graph: c_void_p) -> None:
    if graph:
        _library().cuGraphDestroy(graph)


def _text(code: int) -> str:
    text = c_char_p()
    _library().cuGetErrorString(code, byref(text))
    return f"{text.value.decode(errors='replace')}, {code}" if text.value else f"error {code}"
