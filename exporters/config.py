"""What goes into a bundle. Validation only."""

from __future__ import annotations

from dataclasses import dataclass

from oat_edge.calib.config import QuantizeConfig
from oat_edge.dataclass_json import check_range
from oat_edge.errors import InputError
from oat_edge.runtime.recipe import PRECISIONS, Recipe

# What a device is bought for: half precision on GPUs.
DEFAULT_PRECISION = {"onnx": "fp32", "trt": "fp16", "trt-rtx": "fp16"}
# What a pack can hold; keys of oat_edge.attacks.stages.ATTACKS, known without torch.
PACK_ATTACKS = ("pgd20", "apgd", "autoattack")


def check_engine_target(target: str) -> None:
    """Raise `InputError` unless engines can be built from int8 files of this target."""
    if target != "trt":
        raise InputError(f"target is '{target}': engines take trt, or use --format onnx")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """One export."""

    widths: tuple[float, ...]
    precision: str = "fp32"
    """Of the ONNX files, one of `PRECISIONS`."""
    quantize: QuantizeConfig | None = None
    """How int8 files are made; None for the other precisions."""
    recipe: Recipe | None = None
    """Also build an engine from each ONNX file, in this way."""
    defer: bool = True
    """Where engines cannot be built here, leave that to the device; False: it is an error."""
    pin_lambda: float | None = None
    """Export with this λ folded into the weights instead of λ as an input."""
    floor: bool = True
    """Beside each λ-input file, its twin pinned at the largest λ: bench measures what λ costs."""
    attack_samples: int = 500
    """Test images that are attacked at every knot for the attack pack, all if there are fewer;
    0 makes none."""
    attack: str = "pgd20"
    """One of `PACK_ATTACKS`."""
    seed: int = 0
    """Draws the attacked images and the attack's random start."""
    replace: bool = False
    """Take artifacts of another checkpoint out of the bundle."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is '{self.precision}': expected {', '.join(PRECISIONS)}")
        if (self.quantize is not None) != (self.precision == "int8"):
            raise InputError(f"quantize is {self.quantize}, precision is {self.precision}")
        if self.recipe is not None and self.recipe.precision != self.precision:
            raise InputError(
                f"the recipe says {self.recipe.precision}, the ONNX file {self.precision}"
            )
        if self.recipe is not None and self.quantize is not None:
            check_engine_target(self.quantize.target)
        if self.pin_lambda is not None:
            check_range("pin_lambda", self.pin_lambda, 0.0, 1.0)
        if not self.widths:
            raise InputError("widths are empty: expected one or more")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}: expected a whole number in [0, 2^63)")
        if self.attack not in PACK_ATTACKS:
            raise InputError(f"attack is '{self.attack}': expected {', '.join(PACK_ATTACKS)}")
        if self.attack_samples < 0:
            raise InputError(f"attack_samples is {self.attack_samples}: expected 0 or more")

    def pins(self, knots: tuple[float, ...]) -> tuple[float | None, ...]:
        """What to export of each width: None is the λ-input file."""
        if self.pin_lambda is not None:
            return (self.pin_lambda,)
        return (None, knots[-1]) if self.floor else (None,)
