"""How a network is trained: a frozen dataclass that only validates. Imports no heavy package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from oat_edge.conditioning import PAPER_KNOTS, check_knots
from oat_edge.dataclass_json import check_choice, check_range, from_json, to_json
from oat_edge.errors import InputError
from oat_edge.network_spec import (
    Conditioning,
    Encoding,
    Heads,
    NetworkSpec,
    check_conditioning,
    check_widths,
)

LambdaSampling = Literal["knots", "continuous"]
CleanImages = Literal["share", "all"]
Loss = Literal["oat", "trades"]
Attack = Literal["pgd", "n-fgsm"]
ShareAttack = Literal["off", "widest", "random"]
Amp = Literal["off", "bf16"]
Compile = Literal["off", "on"]
# See `to_json`.
LATER_FIELDS = frozenset(
    {
        "heads", "conditioning", "lambda_sampling", "loss", "trades_beta", "label_smoothing",
        "sandwich", "distill", "attack", "share_attack", "awp_gamma", "ema", "swa_start",
        "patience", "accumulate", "amp", "compile", "clean_images",
    }
)  # fmt: skip


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
    clean_images: CleanImages = "share"
    """Images that train at λ = 0: a share of each batch (OAT), or "all" of it, and all at some
    λ > 0 too, as AdvProp does (Xie et al. 2020); a clean pass needs no attack. With "all",
    `clean_share` is the weight of λ = 0 in the loss, which so expects to be the same."""
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
    # The network, and λ between its knots.
    heads: Heads = "shared"
    """See `NetworkSpec.heads`."""
    conditioning: Conditioning = "film"
    """See `NetworkSpec.conditioning`."""
    lambda_sampling: LambdaSampling = "knots"
    """λ > 0 of a batch: one of the knots (OAT), or anywhere between them ("continuous").

    Every gap between two knots has the same chance, as every knot has (the knots lie densest where
    λ matters most); between them conditioning is interpolated as an exported file does it.
    """
    # Quality: loss, attack, weight averaging and stopping. The defaults are the plain recipe.
    loss: Loss = "oat"
    """OAT's mixture, or TRADES with λ on its β (Zhang et al. 2019; `oat_edge.train.losses`)."""
    trades_beta: float = 6.0
    """β of TRADES at λ = 1."""
    label_smoothing: float = 0.0
    """Share of a label that goes to all classes alike (Szegedy et al. 2016)."""
    sandwich: int | None = None
    """Sandwich rule (Yu & Huang 2019): a step trains the widest width, the narrowest and this many
    others drawn at random; None trains all."""
    distill: bool = False
    """In-place distillation (Yu & Huang 2019): the widest width's outputs label the others (with
    AWP those at the perturbed weights)."""
    attack: Attack = "pgd"
    """Attack of training; N-FGSM is a single step (de Jorge et al. 2022). Validation is PGD's."""
    share_attack: ShareAttack = "off"
    """Attack one width per step, the widest or a random one, and train all on its images."""
    awp_gamma: float = 0.0
    """Size of the adversarial weight perturbation against a layer's norm; 0 is off, 0.005 is
    usual (Wu, Xia & Wang 2020)."""
    ema: float = 0.0
    """Decay per step of the moving average of weights that is validated and saved; 0 is off."""
    swa_start: float | None = None
    """Share of the epochs after which the rate stays and weights are averaged over the epochs
    (Izmailov et al. 2018); None is off."""
    patience: int = 0
    """Stop after this many validations in a row without a better score; 0 never stops."""
    # Several processes
    accumulate: int = 1
    """Parts of a batch that pass one after the other, each with batch statistics of its own
    (so that a part of M images does what ghost batch norm does, Hoffer et al. 2017)."""

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
        check_choice("encoding", self.encoding, Encoding)
        if self.attack_alpha is not None:
            check_range("attack_alpha", self.attack_alpha, 0.0, 1.0)
        if self.crop < 0:
            raise InputError(f"crop is {self.crop}: expected 0 or more pixels")
        if self.train_samples is not None and self.train_samples < 1:
            raise InputError(f"train_samples is {self.train_samples}: expected 1 or more")
        if self.clean_share is not None and not 0.0 < self.clean_share < 1.0:
            raise InputError(f"clean_share is {self.clean_share}: expected inside (0, 1)")
        check_choice("clean_images", self.clean_images, CleanImages)
        if self.clean_images == "all":
            self._check_two_branches()
        check_choice("heads", self.heads, Heads)
        check_conditioning(self.conditioning, self.lambdas, self.encoding)
        check_choice("lambda_sampling", self.lambda_sampling, LambdaSampling)
        lowest = self.lowest_continuous
        if lowest is not None and lowest + 1 >= len(self.lambdas):
            raise InputError(
                f"lambda_sampling is 'continuous' and lambdas are {self.lambdas}: expected two or "
                f"more {'of them' if lowest == 0 else 'above 0'}, to draw λ between them"
            )
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise InputError(
                f"accumulate is {self.accumulate}: expected a divisor of batch_size "
                f"{self.batch_size}"
            )
        check_choice("amp", self.amp, Amp)
        check_choice("compile", self.compile, Compile)
        self._check_quality()

    @property
    def lowest_continuous(self) -> int | None:
        """Index of the knot from which on λ is drawn between knots; None: at knots only."""
        if self.lambda_sampling == "knots":
            return None
        # With two branches nothing lies between λ = 0 and the first knot above it.
        return 0 if self.conditioning == "single-bn" else 1

    @property
    def clean_weight(self) -> float:
        """What λ = 0 counts in the loss: `clean_share`, or 1/K."""
        return 1 / len(self.lambdas) if self.clean_share is None else self.clean_share

    @property
    def drawn_clean_share(self) -> float | None:
        """`clean_share` for `sample_knots`: 0 where λ = 0 has a pass of its own for all images."""
        return 0.0 if self.clean_images == "all" else self.clean_share

    def _check_two_branches(self) -> None:
        if len(self.lambdas) < 2 or self.lambdas[0] > 0 or self.conditioning == "single-bn":
            raise InputError(
                f"clean_images is 'all', lambdas are {self.lambdas} and conditioning "
                f"'{self.conditioning}': expected a batch norm of λ = 0 beside one of λ > 0, or "
                "'share'"
            )

    def _check_quality(self) -> None:
        for name, kind in (("loss", Loss), ("attack", Attack), ("share_attack", ShareAttack)):
            check_choice(name, getattr(self, name), kind)
        check_range("trades_beta", self.trades_beta, 0.0, 1000.0)
        check_range("awp_gamma", self.awp_gamma, 0.0, 1.0)
        for name in ("label_smoothing", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{name} is {getattr(self, name)}: expected inside [0, 1)")
        if self.swa_start is not None and not 0.0 <= self.swa_start < 1.0:
            raise InputError(f"swa_start is {self.swa_start}: expected a share inside [0, 1)")
        if self.swa_start is not None and self.ema:
            raise InputError("ema and swa_start are two ways to average weights: choose one")
        between = len(self.widths) - 2
        if self.sandwich is not None and between < 1:
            raise InputError(
                f"sandwich is {self.sandwich} and widths are {self.widths}: expected three or "
                "more, some to draw between the narrowest and the widest"
            )
        # With none of them the widths between would never be trained, and exported all the same.
        if self.sandwich is not None and not 1 <= self.sandwich <= between:
            raise InputError(
                f"sandwich is {self.sandwich}: expected {'1 to ' if between > 1 else ''}{between}, "
                f"as widths are {self.widths}: some between the narrowest and the widest"
            )
        if self.loss != "trades" and self.trades_beta != 6.0:
            raise InputError(
                f"trades_beta is {self.trades_beta:g} and loss '{self.loss}': expected 'trades', "
                "no other has a β"
            )
        if self.share_attack != "off" and len(self.widths) < 2:
            raise InputError(
                f"share_attack is '{self.share_attack}': one width has none to share with"
            )
        if self.distill and len(self.widths) < 2:
            raise InputError("distill needs two or more widths: a single one has no teacher")
        if self.patience < 0:
            raise InputError(f"patience is {self.patience}: expected 0 or more validations")

    def network_spec(
        self, class_names: tuple[str, ...], image_shape: tuple[int, int, int]
    ) -> NetworkSpec:
        """Of the network that this trains on data of these classes and this (C, H, W)."""
        return NetworkSpec(
            arch=self.arch,
            widths=self.widths,
            lambdas=self.lambdas,
            class_names=class_names,
            image_shape=image_shape,
            eps=self.eps,
            encoding=self.encoding,
            heads=self.heads,
            conditioning=self.conditioning,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return to_json(self, LATER_FIELDS)

    @classmethod
    def from_json(cls, value: Any) -> TrainConfig:
        """Read what `to_json` wrote; anything else raises `InputError`."""
        return from_json(cls, value, "training configuration")
