"""What a network is: all that rebuilds it and uses its artifacts. No heavy package is imported."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from oat_edge.conditioning import PAPER_KNOTS, check_knots
from oat_edge.dataclass_json import check_choice, check_range, from_json, to_json
from oat_edge.errors import InputError

Encoding = Literal["random", "dct", "onehot", "none"]
Heads = Literal["shared", "per-width"]
Conditioning = Literal["film", "table", "single-bn"]
# See `to_json`.
LATER_FIELDS = frozenset({"calibrated_widths", "heads", "conditioning"})


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSpec:
    """All that is needed to rebuild a network and to use an artifact of it."""

    arch: str
    """Name in `oat_edge.nn.zoo`."""
    widths: tuple[float, ...] = (0.5, 0.75, 1.0)
    """Width multipliers, growing, the last one 1."""
    lambdas: tuple[float, ...] = PAPER_KNOTS
    """Knots of λ; a single one is a dedicated network without FiLM."""
    class_names: tuple[str, ...]
    """One name per class, in the order of the logits."""
    image_shape: tuple[int, int, int]
    """(C, H, W)."""
    eps: float
    """Radius of the L-infinity ball of training, in pixel scale [0, 1]."""
    encoding: Encoding = "random"
    """How a knot's λ is encoded for FiLM: random-orthogonal, DCT or one-hot rows, or λ itself."""
    encoding_dim: int = 128
    """Length of the random-orthogonal and DCT encodings (paper: 128)."""
    calibrated_widths: tuple[float, ...] = ()
    """Those of `widths` that were not trained: `oat-edge calibrate bn` has added them."""
    heads: Heads = "shared"
    """One classifier that every width slices, or one per width (SOLAR, arXiv 2509.16833)."""
    conditioning: Conditioning = "film"
    """How λ reaches the network.

    "film": a batch norm for λ = 0 and one for λ > 0, then FiLM (OAT). "table": the same with gamma
    and beta of every knot learnt directly, no MLP. "single-bn": such tables behind one batch norm
    for all λ (arXiv 2403.19150); λ is then continuous through 0.
    """

    def __post_init__(self) -> None:
        check_widths(self.widths)
        if not set(self.calibrated_widths) <= set(self.widths[1:-1]):
            raise InputError(
                f"calibrated_widths are {self.calibrated_widths}: expected some of {self.widths} "
                "that lie between trained ones"
            )
        check_knots(self.lambdas)
        check_choice("heads", self.heads, Heads)
        check_conditioning(self.conditioning, self.lambdas, self.encoding)
        check_range("eps", self.eps, 0.0, 1.0)
        if len(self.class_names) < 2:
            raise InputError(f"class_names has {len(self.class_names)} names: expected 2 or more")
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise InputError(f"image_shape is {self.image_shape}: expected (C, H, W)")
        check_choice("encoding", self.encoding, Encoding)
        if self.encoding in ("random", "dct") and self.encoding_dim < len(self.lambdas):
            raise InputError(
                f"encoding_dim is {self.encoding_dim}: {len(self.lambdas)} orthogonal rows "
                "need at least as many dimensions"
            )

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return len(self.class_names)

    @property
    def trained_widths(self) -> tuple[float, ...]:
        """`widths` without those that were only calibrated."""
        return tuple(width for width in self.widths if width not in self.calibrated_widths)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return to_json(self, LATER_FIELDS)

    @classmethod
    def from_json(cls, value: Any) -> NetworkSpec:
        """Read what `to_json` wrote; anything else raises `InputError`."""
        return from_json(cls, value, "spec")


def check_widths(widths: tuple[float, ...]) -> None:
    """Raise `InputError` unless `widths` grow inside (0, 1] and end at 1."""
    if not widths or widths[-1] != 1.0 or not all(0.0 < width <= 1.0 for width in widths):
        raise InputError(f"widths are {widths}: expected values in (0, 1], the largest being 1")
    if any(b <= a for a, b in pairwise(widths)):
        raise InputError(f"widths are {widths}: expected strictly growing values")


def check_conditioning(
    conditioning: Conditioning, lambdas: tuple[float, ...], encoding: Encoding
) -> None:
    """Raise `InputError` unless there is something for this conditioning to do."""
    check_choice("conditioning", conditioning, Conditioning)
    if conditioning == "film":
        return
    if len(lambdas) == 1:
        raise InputError(
            f"conditioning is '{conditioning}' and the only λ is {lambdas[0]:g}: a dedicated "
            "network is not conditioned, expected 'film' (the default) or more lambdas"
        )
    if encoding != "random":
        raise InputError(
            f"encoding is '{encoding}' and conditioning '{conditioning}': only 'film' encodes λ, "
            "leave one of them out"
        )
