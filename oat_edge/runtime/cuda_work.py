"""Work for the GPU: streams, events, memory and graphs, each freed once."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable
from ctypes import byref, c_float, c_uint64, c_void_p
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.runtime.cuda import call, library, make_current, primary

# cuda.h: CUstream_flags, CUstreamCaptureMode
NON_BLOCKING = 1  # never waits for the default stream, which others may use
THREAD_LOCAL = 1  # calls of other threads do not spoil a capture


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
            library().cuStreamEndCapture(stream.handle, byref(graph))
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


def _create(name: str, *arguments: Any) -> int | None:
    """Call a function whose first argument receives a handle."""
    make_current()
    handle = c_void_p()
    call(name, byref(handle), *arguments)
    return handle.value


def _free(name: str, handle: int | None) -> None:
    # Results are not looked at: after a fault of the device every call fails, and the one that
    # was first has been reported.
    driver = library()
    driver.cuCtxSetCurrent(primary().handle)
    getattr(driver, name)(handle)


def _discard(graph: c_void_p) -> None:
    if graph:
        library().cuGraphDestroy(graph)
