"""CUDA's driver and the GPU behind it. No torch, no toolkit.

It is the driver's own API (libcuda.so.1), not the runtime library (libcudart): the driver's is on
every machine whose GPU works, a Jetson too, keeps its name and its old symbols from one version
to the next (all those used here: 11.4 to 13), and TensorRT-RTX carries its libcudart inside, so
that there need be none to find. Both share the device's primary context, which is used here.

Failed calls raise `DependencyError`: the arguments are ours, so it is the device that fails.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import weakref
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

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
# cuda.h: CUresult, CUdevice_attribute
OUT_OF_MEMORY, NO_DEVICE = 2, 100
MULTIPROCESSORS, CAPABILITY_MAJOR, CAPABILITY_MINOR = 16, 75, 76
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
    call("cuCtxSetCurrent", primary().handle)


def call(name: str, *arguments: Any) -> None:
    """Call a function of the driver; raises `DependencyError` with its name and CUDA's text."""
    code = getattr(library(), name)(*arguments)
    if code:
        remedy = "run again; if it fails again, `oat-edge doctor` looks at the device"
        if code == OUT_OF_MEMORY:
            remedy = "close what else uses the GPU, or export with a smaller --batch"
        raise DependencyError(f"{name} failed ({_text(code)}): {remedy}")


class _Primary:
    """The device's primary context, retained."""

    def __init__(self) -> None:
        device, handle = _device(), c_void_p()
        call("cuDevicePrimaryCtxRetain", byref(handle), device)
        self.handle = handle
        # At exit finalizers run in the reverse of the order in which they were made: as nothing
        # else is made before it, this one is the last.
        weakref.finalize(self, library().cuDevicePrimaryCtxRelease_v2, device)


_lock = threading.Lock()
_retained: list[_Primary] = []


def primary() -> _Primary:
    """The context that all of this process shares, with TensorRT and ONNX Runtime."""
    if not _retained:
        with _lock:
            if not _retained:
                _retained.append(_Primary())
    return _retained[0]


@functools.cache
def library() -> ctypes.CDLL:
    """The driver's library with its signatures; `DependencyError` if it is not there or too old."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError as error:
        what = "is not there" if "No such file" in str(error) else f"does not load ({error})"
        raise DependencyError(
            f"{LIBRARY} {what}, but a GPU needs it: install NVIDIA's driver ({CONTAINER})"
        ) from None
    for name, arguments in SIGNATURES.items():
        try:
            function = getattr(driver, name)
        except AttributeError:
            raise DependencyError(
                f"{LIBRARY} has no {name}: expected the driver of CUDA 11.4 or later, update it"
            ) from None
        function.argtypes, function.restype = arguments, c_int
    return driver


def _device() -> int:
    """The first visible device, of a driver that works."""
    code = library().cuInit(0)
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


def _text(code: int) -> str:
    text = c_char_p()
    library().cuGetErrorString(code, byref(text))
    return f"{text.value.decode(errors='replace')}, {code}" if text.value else f"error {code}"
