"""What the comparison trains, and at which operating points each network counts. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from oat_edge.config import TrainConfig
from oat_edge.errors import InputError
from oat_edge.evaluation.config import EvalConfig, check_run_attacks
from oat_edge.operating_point import OperatingPoint, grid
from oat_edge.train.recipes import DEFAULT, recipe, with_settings

Kind = Literal["oats", "compared", "dedicated", "oat"]
# Settings that mean something for several λ, or several widths, only. A network that has one has
# their defaults: some are refused there.
OF_SEVERAL_KNOTS = ("clean_share", "clean_images", "conditioning", "lambda_sampling")
OF_SEVERAL_WIDTHS = ("heads", "sandwich", "distill", "share_attack")


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much to spend; None is what the recipe says, or all there is."""

    epochs: int | None
    train_samples: int | None
    attacks: tuple[str, ...]
    num_attacked: int
    """Test images, for every operating point."""
    dedicated: tuple[float, ...] = ()
    """λ of the dedicated networks; (): every knot."""


BUDGETS: dict[str, Budget] = {
    # Shows that all parts work here; its accuracies say nothing.
    "smoke": Budget(
        epochs=3,
        train_samples=300,
        attacks=("pgd20",),
        num_attacked=50,
        dedicated=(0.0, 1.0),
    ),
    "small": Budget(
        epochs=10,
        train_samples=10_000,
        attacks=("autoattack",),
        num_attacked=500,
    ),
    "paper": Budget(
        epochs=None,
        train_samples=None,
        attacks=("autoattack",),
        num_attacked=10_000,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReproduceConfig:
    """One comparison."""

    data: str
    budget: str = "small"
    """Name in `BUDGETS`; the fields below that are not None override it."""
    recipe: str = DEFAULT
    """Of every network but the compared one."""
    compare_recipe: str | None = None
    """Train OATS by this recipe too, and compare the two at every operating point."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainConfig` for every network, before recipe and budget."""
    dedicated: tuple[float, ...] | None = None
    """λ of the dedicated networks, some of the knots; (): every knot, None: the budget's."""
    oat_per_width: bool = False
    """Train an OAT network of each width of its own, too."""
    eval_widths: tuple[float, ...] | None = None
    """Widths to attack; None: all that are trained."""
    attacks: tuple[str, ...] | None = None
    num_attacked: int | None = None
    num_seeds: int = 1
    """Every network is trained with the seeds S, S+1, …; S is the seed of `settings`."""

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise InputError(f"budget is '{self.budget}': expected {', '.join(BUDGETS)}")
        if self.num_seeds < 1:
            raise InputError(f"seeds is {self.num_seeds}: expected 1 or more")
        if self.compare_recipe == self.recipe:
            raise InputError(f"compare_recipe is '{self.recipe}', the recipe itself: name another")
        names = {one.name for one in dataclasses.fields(TrainConfig)}
        for name in self.settings:
            if name not in names - {"data"}:
                raise InputError(f"'{name}' is no setting of training: see `oat-edge train --help`")
        self.evaluation()

    def evaluation(self) -> EvalConfig:
        """How every network is attacked: alike, each at its own points, on the same images.

        Without transfer: only a network of several λ and widths has other points to be attacked
        from, and the comparison would not be one of like with like.
        """
        budget = BUDGETS[self.budget]
        attacks = self.attacks or budget.attacks
        check_run_attacks(attacks)
        return EvalConfig(
            attacks=attacks,
            num_samples=budget.num_attacked if self.num_attacked is None else self.num_attacked,
            transfer=False,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """One network to train."""

    name: str
    """Of its run directory."""
    group: str
    """Its name without the seed: networks of one group differ in nothing else."""
    kind: Kind
    config: TrainConfig
    width: float | None = None
    """The width that a network of its own stands for; None: it has the widths it was trained at."""
    eval_widths: tuple[float, ...]
    """Of its own widths, those to attack."""

    @property
    def points(self) -> dict[OperatingPoint, OperatingPoint]:
        """Operating point in the comparison -> the network's own."""
        own = grid(self.eval_widths, self.config.lambdas)
        return {OperatingPoint(self.width or one.width, one.lam): one for one in own}


def plan(config: ReproduceConfig, *, num_train: int) -> tuple[Model, ...]:
    """Every network, in the order of training: seed by seed, OATS first.

    num_train: images of the whole training split. Raises `InputError` for settings that no
    network can have, and for a λ or width that OATS does not have.
    """
    first = _oats(config, config.recipe, num_train)
    dedicated = BUDGETS[config.budget].dedicated if config.dedicated is None else config.dedicated
    dedicated = dedicated or first.lambdas
    eval_widths = config.eval_widths or first.widths
    _check_part("dedicated λ", dedicated, first.lambdas)
    _check_part("eval width", eval_widths, first.widths)
    if 1.0 not in eval_widths:
        raise InputError(f"eval widths are {eval_widths}: dedicated networks have width 1, add it")
    models = []
    for seed in range(first.seed, first.seed + config.num_seeds):
        base = dataclasses.replace(first, seed=seed)
        models.append(_model("oats", "oats", base, eval_widths))
        if config.compare_recipe is not None:
            other = dataclasses.replace(
                _oats(config, config.compare_recipe, num_train),
                seed=seed, arch=first.arch, eps=first.eps,
                widths=first.widths, lambdas=first.lambdas,
            )  # fmt: skip
            models.append(_model(f"oats-{config.compare_recipe}", "compared", other, eval_widths))
        for lam in dedicated:
            alone = _alone(base, OF_SEVERAL_KNOTS + OF_SEVERAL_WIDTHS, lambdas=(lam,))
            models.append(_model(f"dedicated-lambda{lam:g}", "dedicated", alone, (1.0,)))
        for width in eval_widths if config.oat_per_width else ():
            arch = base.arch if width == 1.0 else f"{base.arch}-x{width:g}"
            alone = _alone(base, OF_SEVERAL_WIDTHS, arch=arch)
            models.append(_model(f"oat-width{width:g}", "oat", alone, (1.0,), width=width))
    return tuple(models)


def chosen(models: tuple[Model, ...], patterns: tuple[str, ...]) -> tuple[Model, ...]:
    """Models of these names, in which * stands for anything; `InputError` for one without any."""
    for pattern in patterns:
        if not any(fnmatchcase(model.name, pattern) for model in models):
            names = ", ".join(model.name for model in models)
            raise InputError(f"no model is called '{pattern}': expected some of {names}")
    return tuple(model for model in models if any(fnmatchcase(model.name, one) for one in patterns))


def _oats(config: ReproduceConfig, name: str, num_train: int) -> TrainConfig:
    budget = BUDGETS[config.budget]
    base = recipe(config.data, name)
    changes: dict[str, Any] = {}
    if budget.epochs is not None:
        changes["epochs"] = min(budget.epochs, base.epochs)
    if budget.train_samples is not None and budget.train_samples < num_train:
        changes["train_samples"] = budget.train_samples
    return with_settings(base, {**changes, **config.settings})


def _alone(config: TrainConfig, reset: tuple[str, ...], **changes: Any) -> TrainConfig:
    """The same training of one width, the settings `reset` as they are by default."""
    defaults = {one.name: one.default for one in dataclasses.fields(config) if one.name in reset}
    return dataclasses.replace(config, widths=(1.0,), **{**defaults, **changes})


def _model(
    group: str,
    kind: Kind,
    config: TrainConfig,
    eval_widths: tuple[float, ...],
    *,
    width: float | None = None,
) -> Model:
    return Model(
        name=f"{group}-seed{config.seed}",
        group=group,
        kind=kind,
        config=config,
        width=width,
        eval_widths=eval_widths,
    )


def _check_part(what: str, values: tuple[float, ...], of: tuple[float, ...]) -> None:
    for value in values:
        if value not in of:
            have = ", ".join(f"{item:g}" for item in of)
            raise InputError(f"{what} is {value:g}: OATS is trained at {have}")
