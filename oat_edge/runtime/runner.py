"""Runner: one exported network, open and ready. numpy in, numpy out; torch is not needed.

N batch, C channels, H/W pixels, K classes
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.errors import InputError
from oat_edge.network_spec import NetworkSpec

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerIO:
    """What a runner takes and gives."""

    image_shape: tuple[int, int, int]
    """(C, H, W) of one image, float32 in [0, 1]."""
    num_classes: int
    lambdas: tuple[float, ...]
    """Knots; λ may lie anywhere between the first and the last."""
    pinned_lambda: float | None = None
    """λ folded into the weights; None: λ is an input."""

    @classmethod
    def of(cls, spec: NetworkSpec, pinned_lambda: float | None = None) -> RunnerIO:
        """What a runner of this network takes and gives."""
        return cls(
            image_shape=spec.image_shape,
            num_classes=spec.num_classes,
            lambdas=spec.lambdas,
            pinned_lambda=pinned_lambda,
        )


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """What one request took on the device, by its own events."""

    h2d_ms: float
    """Image and λ to the device."""
    compute_ms: float
    d2h_ms: float
    """Logits to the host."""


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One layer of an open artifact, as the back end runs it (fused layers are one)."""

    name: str
    kind: str
    """Operator or kernel family, e.g. "Conv"."""
    ms: float
    """Median over the profiled requests."""


class Runner(ABC):
    """A context manager around one open artifact.

    `device` and `precision` are what really runs: a runner that cannot have what was asked for
    raises `FallbackError` instead of running something else.
    """

    io: RunnerIO
    backend: str
    """Library and provider, e.g. "onnxruntime-cpu"."""
    device: str
    precision: str
    versions: dict[str, str]
    batch_limit: int | None = None
    """Most images per request; None: any number."""
    remarks: tuple[str, ...] = ()
    """What a figure of this runner must carry, e.g. "cuda_graph: not captured (…)"."""
    default_lambda: float | None = None
    """λ of requests that say none: that of an operating point; None: they must say one."""
    closed: bool = False

    def infer(self, image: Float32, lam: float | Float32 | None = None) -> Float32:
        """Logits of a batch.

        image: (N, C, H, W) float32 in [0, 1]. lam: (N,) float32, a λ per image, or one number
        for all; a pinned network takes none (or its own), one opened at an operating point may do
        without. Returns (N, K) float32.
        Raises `InputError` on another shape or dtype, on λ that is NaN or outside the trained
        range, and after `close`. The values of `image` are not looked at: that would cost time.
        """
        if self.closed:
            raise InputError(f"this {self.backend} runner is closed: open it again")
        self._check_image(image)
        if self.batch_limit is not None and len(image) > self.batch_limit:
            raise InputError(
                f"image holds {len(image)} images: this engine takes up to {self.batch_limit} "
                "per request (export --batch)"
            )
        lam_n = self._check_lambda(lam, len(image))
        # Back ends take plain memory: no negative strides, no broadcasts.
        return self._run(np.ascontiguousarray(image), np.ascontiguousarray(lam_n))

    @abstractmethod
    def _run(self, image: Float32, lam: Float32) -> Float32:
        """Run checked arrays: image (N, C, H, W), lam (N,), both float32 and contiguous."""

    def device_times(self) -> DeviceTimes | None:
        """Of the last request, where the device has a clock of its own; else None."""
        return None

    def profile(self, image: Float32, lam: Float32, *, runs: int) -> list[LayerTime]:
        """Median time of each layer over `runs` requests, in the order in which they run.

        Takes what `infer` takes, λ as an array. It slows the requests down: never mixed with a
        measurement of latency. Raises `InputError` where the back end cannot.
        """
        raise InputError(f"{self.backend} has no times of layers")

    def close(self) -> None:
        """Release what the back end holds; `infer` is over."""
        self.closed = True

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_image(self, image: Any) -> None:
        if not isinstance(image, np.ndarray) or image.dtype != np.float32:
            got = getattr(image, "dtype", type(image).__name__)
            raise InputError(f"image is {got}: expected a float32 array with values in [0, 1]")
        if image.ndim != 4 or image.shape[1:] != self.io.image_shape or not len(image):
            shape = ", ".join(map(str, self.io.image_shape))
            raise InputError(f"image has shape {image.shape}: expected (N, {shape}) with N >= 1")

    def _check_lambda(self, lam: Any, num_images: int) -> Float32:
        pinned = self.io.pinned_lambda
        if lam is None:
            lam = self.default_lambda if pinned is None else pinned
            if lam is None:
                raise InputError("lambda is missing: pass a number in [0, 1], or one per image")
        if isinstance(lam, (int, float, np.integer, np.floating)):
            lam_n = np.full(num_images, lam, dtype=np.float32)
        elif isinstance(lam, np.ndarray) and lam.dtype == np.float32:
            lam_n = lam
        else:
            got = getattr(lam, "dtype", type(lam).__name__)
            raise InputError(f"lambda is {got}: expected a number or a float32 array of shape (N,)")
        if lam_n.shape != (num_images,):
            raise InputError(f"lambda has shape {lam_n.shape}: expected ({num_images},)")
        low, high = (pinned, pinned) if pinned is not None else self._lambda_range()
        # Written so that NaN fails too.
        if not (lam_n.min() >= np.float32(low) and lam_n.max() <= np.float32(high)):
            where = f"[{low:g}, {high:g}]" if low != high else f"{low:g} (all this network has)"
            raise InputError(f"lambda is {_culprit(lam_n, low, high)}: expected {where}")
        return lam_n

    def _lambda_range(self) -> tuple[float, float]:
        return self.io.lambdas[0], self.io.lambdas[-1]


def _culprit(lam_n: Float32, low: float, high: float) -> float:
    outside = ~((lam_n >= np.float32(low)) & (lam_n <= np.float32(high)))
    return float(lam_n[outside][0])
