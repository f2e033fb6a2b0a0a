"""Accuracies as shares with 95 % intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oat_edge.evaluation.pack import UInt8

# Normal quantile of a two-sided 95 % interval.
Z_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Accuracy at one operating point; shares in [0, 1]."""

    standard_accuracy: float
    """Share of clean images classified right."""
    robust_accuracy: dict[str, float]
    """By attack name, the share of images that stay right under it; "transfer": under everything
    crafted at other operating points; "worst": under all of these."""
    num_samples: int
    """Images behind each of these figures."""


def to_float(images: UInt8) -> npt.NDArray[np.float32]:
    """Images as a network takes them: 8-bit levels to float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def interval(share: float, num_samples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `num_samples`."""
    low, high = wilson_interval(round(share * num_samples), num_samples)
    return float(low), float(high)


def wilson_interval(
    num_right: npt.ArrayLike, num_samples: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Wilson's 95 % interval of a share (Wilson 1927), elementwise: (low, high) in [0, 1].

    num_right out of num_samples, 0 <= num_right <= num_samples, num_samples >= 1.
    """
    n = np.asarray(num_samples, dtype=np.float64)
    right = np.asarray(num_right, dtype=np.float64)
    if not (np.all(n >= 1) and np.all(right >= 0) and np.all(right <= n)):
        raise ValueError("expected 0 <= num_right <= num_samples and num_samples >= 1")
    share, z2 = right / n, Z_95**2
    centre = share + z2 / (2 * n)
    reach = Z_95 * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = (centre - reach) / (1 + z2 / n), (centre + reach) / (1 + z2 / n)
    # At the ends the bound is exact; rounding must not move it past the share.
    return np.where(right == 0, 0.0, np.maximum(low, 0)), np.where(right == n, 1.0, high)
