"""What is trained and how: frozen dataclasses that only validate. No heavy package is imported."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args

from oat_edge.conditioning import PAPER_KNOTS, check_knots
from oat_edge.errors import InputError

T = TypeVar("T")

Encoding = Literal["random", "dct", "onehot", "none"]
Amp = Literal["off", "bf16"]
Compile = Literal["off", "on"]


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

    def __post_init__(self) -> None:
        check_widths(self.widths)
        if not set(self.calibrated_widths) <= set(self.widths[1:-1]):
            raise InputError(
                f"calibrated_widths are {self.calibrated_widths}: expected some of {self.widths} "
                "that lie between trained ones"
            )
        check_knots(self.lambdas)
        check_range("eps", self.eps, 0.0, 1.0)
        if len(self.class_names) < 2:
            raise InputError(f"class_names has {len(self.class_names)} names: expected 2 or more")
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise InputError(f"image_shape is {self.image_shape}: expected (C, H, W)")
        if self.encoding not in get_args(Encoding):
            raise InputError(f"encoding is '{self.encoding}': expected {get_args(Encoding)}")
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
        value = dataclasses.asdict(self)
        if not self.calibrated_widths:
            del value["calibrated_widths"]  # as files of trained widths alone have always been
        return value

    @classmethod
    def from_json(cls, value: Any) -> NetworkSpec:
        """Read what `to_json` wrote; anything else raises `InputError`."""
        return from_json(cls, value, "spec")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One OATS training run (DESIGN, section 6)."""

    data: str
    """Name of a data set, or a path to an image folder or .npz file."""
    arch: str
    """Name in `oat_edge.nn.zoo`."""
    widths: tuple[float, ...] = (0.5, 0.75, 1.0)
    """Width multipliers; (1.0,) is OAT."""
    lambdas: tuple[float, ...] = PAPER_KNOTS
    """Knots of λ; (0,) with one width is standard training, (1,) PGD-AT."""
    encoding: Encoding = "random"
    """See `NetworkSpec.encoding`."""
    clean_share: float | None = None
    """Share of λ = 0 samples in a batch; None is 1/K as in the paper."""
    epochs: int = 30
    """Passes over the training split."""
    batch_size: int = 128
    """Images per optimiser step."""
    lr: float = 0.1
    """Peak learning rate; cosine to zero over all steps."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 5e-4
    """On all parameters, as the authors have it."""
    eps: float = 8 / 255
    """Radius of the attack, in pixel scale [0, 1]."""
    attack_steps: int = 7
    """PGD steps in training and validation."""
    attack_alpha: float | None = None
    """PGD step size, in pixel scale; None is the authors' min(1.25 eps, eps + 4/255) / steps."""
    crop: int = 0
    """Random crop after zero-padding by this many pixels; 0 is off."""
    flip: bool = False
    """Random horizontal flip."""
    train_samples: int | None = None
    """Size of a seeded subset of the training split; None takes all."""
    val_every: int = 1
    """Validate after every this many epochs, and after the last."""
    val_attack_samples: int = 256
    """Images of the validation split that are attacked at each (width, λ)."""
    seed: int = 0
    """Seeds weights, encodings, order, augmentation, λ and attacks."""

    # Speed (`oat_edge.train.precision`)
    amp: Amp = "off"
    """bf16: attack and training passes in bfloat16; parameters, statistics, loss in float32."""
    compile: Compile = "off"
    """on: the attacked network goes through torch.compile, on CUDA with CUDA graphs."""

    def __post_init__(self) -> None:
        check_widths(self.widths)
        check_knots(self.lambdas)
        check_range("eps", self.eps, 0.0, 1.0)
        check_range("momentum", self.momentum, 0.0, 1.0)
        check_range("weight_decay", self.weight_decay, 0.0, 1.0)
        for name in ("epochs", "batch_size", "attack_steps", "val_every", "val_attack_samples"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if not 0.0 < self.lr < float("inf"):
            raise InputError(f"lr is {self.lr}: expected a positive number")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}: expected a whole number in [0, 2^63)")
        if self.encoding not in get_args(Encoding):
            raise InputError(f"encoding is '{self.encoding}': expected {get_args(Encoding)}")
        if self.attack_alpha is not None:
            check_range("attack_alpha", self.attack_alpha, 0.0, 1.0)
        if self.crop < 0:
            raise InputError(f"crop is {self.crop}: expected 0 or more pixels")
        if self.train_samples is not None and self.train_samples < 1:
            raise InputError(f"train_samples is {self.train_samples}: expected 1 or more")
        if self.clean_share is not None and not 0.0 < self.clean_share < 1.0:
            raise InputError(f"clean_share is {self.clean_share}: expected inside (0, 1)")
        for name, allowed in (("amp", get_args(Amp)), ("compile", get_args(Compile))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is '{getattr(self, name)}': expected {allowed}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> TrainConfig:
        """Read what `to_json` wrote; anything else raises `InputError`."""
        return from_json(cls, value, "training configuration")


def check_widths(widths: tuple[float, ...]) -> None:
    """Raise `InputError` unless `widths` grow inside (0, 1] and end at 1."""
    if not widths or widths[-1] != 1.0 or not all(0.0 < width <= 1.0 for width in widths):
        raise InputError(f"widths are {widths}: expected values in (0, 1], the largest being 1")
    if any(b <= a for a, b in pairwise(widths)):
        raise InputError(f"widths are {widths}: expected strictly growing values")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `InputError` unless low <= value <= high (NaN fails)."""
    if not low <= value <= high:
        raise InputError(f"{name} is {value}: expected a number in [{low:g}, {high:g}]")


def from_json(cls: type[T], value: Any, what: str) -> T:
    """Build dataclass `cls` from a JSON object: lists become tuples, names must match exactly."""
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(value, dict) or not fields.issuperset(value):
        raise InputError(f"{what} is {value!r:.80}: expected an object with keys {sorted(fields)}")
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
    try:
        return cls(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise InputError(f"{what} has a wrong or missing value ({error})") from None
