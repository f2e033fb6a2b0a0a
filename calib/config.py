"""How int8 files are made. Validation only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from oat_edge.bundle import TARGETS
from oat_edge.errors import InputError

METHODS = ("minmax", "entropy", "percentile")
METHOD = "minmax"
NUM_IMAGES = CHECK_IMAGES = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeConfig:
    """One quantisation."""

    target: str = "cpu"
    """One of `TARGETS`."""
    method: str = METHOD
    """How a range comes from activations, one of `METHODS`."""
    num_images: int = NUM_IMAGES
    """Images of the training split whose activations are looked at, dealt out over all λ; all if
    there are fewer."""
    lambdas: tuple[float, ...] | None = None
    """λ that are calibrated; None: every knot. Leaving some out is for experiments."""
    max_drop: float = 0.5
    """Percentage points of standard and of robust accuracy that int8 may cost at the worst λ."""
    check_images: int = CHECK_IMAGES
    """Images, neither of the calibration nor of the test split, that the cost is measured on;
    0: it is not."""
    sensitivity: bool = False
    """Measure what each layer does alone even if nothing has to stay in float32."""

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise InputError(f"target is '{self.target}': expected {' or '.join(TARGETS)}")
        if self.method not in METHODS:
            raise InputError(f"calib_method is '{self.method}': expected {', '.join(METHODS)}")
        if self.num_images < 1:
            raise InputError(f"calib_samples is {self.num_images}: expected 1 or more")
        if self.check_images < 0:
            raise InputError(f"check_samples is {self.check_images}: expected 0 or more")
        if not (math.isfinite(self.max_drop) and 0 <= self.max_drop <= 100):
            raise InputError(f"max_drop is {self.max_drop:g}: expected points in [0, 100]")
        if self.lambdas is not None and not self.lambdas:
            raise InputError("the calibrated lambdas are empty: expected one or more")
