"""How an engine is built from an ONNX file. It travels in the manifest to the device."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from oat_edge.dataclass_json import from_json
from oat_edge.errors import InputError

# Formats of engines, and the module that builds and runs each.
LIBRARIES = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx"}
PRECISIONS = ("fp32", "fp16", "int8")
MAX_BATCH = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything but the network that an engine depends on. Validation only."""

    format: str = "trt"
    """Key of `LIBRARIES`."""
    precision: str = "fp16"
    """What the ONNX file carries; the builder is not asked to change it."""
    batches: tuple[int, int, int] = (1, 8, 32)
    """Fewest, usual and most images per request; kernels are chosen for the usual number."""
    opt_level: int | None = None
    """How long the builder looks for faster kernels, 0 to 5; None is the library's own choice."""
    workspace_mb: int | None = None
    """Device memory (10^6 bytes) that one layer may use; None is all there is."""
    version_compatible: bool = False
    """Later versions of the library may load it (larger, may be slower)."""
    refit: bool = False
    """Weights may be replaced without building again."""

    def __post_init__(self) -> None:
        if self.format not in LIBRARIES:
            raise InputError(f"format is '{self.format}': expected {', '.join(LIBRARIES)}")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is '{self.precision}': expected {', '.join(PRECISIONS)}")
        for name in ("version_compatible", "refit"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}: expected true or false")
        for name, value in (
            *(("batch", one) for one in self.batches),
            ("opt_level", self.opt_level),
            ("workspace_mb", self.workspace_mb),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise InputError(f"{name} is {value!r}: expected a whole number")
        low, usual, high = self.batches if len(self.batches) == 3 else (0, 0, 0)
        if not 1 <= low <= usual <= high <= MAX_BATCH:
            got = ",".join(map(str, self.batches))
            raise InputError(
                f"batch is '{got}': expected the fewest, usual and most images per request, "
                f"such as 1,8,32 (at most {MAX_BATCH})"
            )
        if self.opt_level is not None and not 0 <= self.opt_level <= 5:
            raise InputError(f"opt_level is {self.opt_level}: expected 0 to 5")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise InputError(f"workspace_mb is {self.workspace_mb}: expected 1 or more")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "batches": list(self.batches)}

    @classmethod
    def from_json(cls, value: Any) -> Recipe:
        """Read what `to_json` gave; anything else raises `InputError`."""
        recipe: Recipe = from_json(cls, value, "recipe")
        return recipe
