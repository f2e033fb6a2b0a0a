"""How long a comparison will take on this machine, from a few training steps of each kind."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from oat_edge.config import TrainConfig
from oat_edge.evaluation.config import EvalConfig
from oat_edge.reproduce.plan import Model

if TYPE_CHECKING:
    from torch import Tensor

    from oat_edge.data import Dataset
    from oat_edge.train.loop import Trainer

# A first step of so few images says whether a whole batch can be waited for.
FEW_IMAGES, PATIENCE_S = 24, 1.0
# `COSTS` of a part of the evaluation, in passes there and back: PGD-20 with five restarts.
PASSES_PER_COST = 110
# A pass without a way back.
FORWARD_SHARE = 1 / 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Of one network, on this machine."""

    training_s: float
    """What is left of it, validation included."""
    attack_s: float
    """At most: images that are fooled early need less, and finished parts nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Speed:
    """Seconds for one image."""

    step: float
    passes: dict[float, float]
    """By width: forward and back to the image."""


def estimate(
    models: Sequence[Model],
    dataset: Dataset,
    config: EvalConfig,
    runs: Path,
    *,
    device: str = "cpu",
) -> dict[str, Estimate]:
    """By model's name. dataset: the first seed's; takes some seconds for each kind of network."""
    speeds: dict[TrainConfig, _Speed] = {}
    estimates = {}
    for model in models:
        kind = _kind(model.config)
        if kind not in speeds:
            speeds[kind] = _measure(kind, dataset, device)
        estimates[model.name] = _estimate(model, speeds[kind], dataset, config, runs)
    return estimates


def _kind(config: TrainConfig) -> TrainConfig:
    """The same for configurations whose steps take as long."""
    lam = config.lambdas[0]
    # 0 has no attack, 1 no clean pass, all between have both.
    same = config.lambdas if len(config.lambdas) > 1 else (lam if lam in (0.0, 1.0) else 0.5,)
    return dataclasses.replace(config, lambdas=same, seed=0)


def _measure(config: TrainConfig, dataset: Dataset, device: str) -> _Speed:
    import torch

    from oat_edge.attacks.pgd import pgd, uniform_noise
    from oat_edge.nn.fold import fold
    from oat_edge.train.loop import Trainer
    from oat_edge.train.sampling import sample_knots

    # A part of a batch takes as long as so many images of a whole one.
    config = dataclasses.replace(config, accumulate=1, compile="off")
    with tempfile.TemporaryDirectory() as nowhere:
        trainer = Trainer(config, dataset, Path(nowhere) / "run", device=device)
    generator = torch.Generator().manual_seed(0)
    evaluated = {width: fold(trainer.network, width) for width in config.widths}  # in float32

    def step(num: int) -> None:
        knots = sample_knots(num, len(config.lambdas), config.drawn_clean_share, generator)
        trainer.step(*_batch(trainer, num), knots.to(trainer.device), generator)

    def attack(width: float, num: int) -> None:
        images, labels = _batch(trainer, num)
        folded = evaluated[width]
        lam = torch.full((1,), config.lambdas[-1], device=trainer.device)
        pgd(
            folded.at(lam), images, labels,
            eps=config.eps, steps=1, alpha=config.eps,
            noise=uniform_noise(images, config.eps, generator),
        )  # fmt: skip

    sizes = FEW_IMAGES, trainer.batch_size
    return _Speed(
        step=_per_image(step, sizes, device),
        passes={
            width: _per_image(partial(attack, width), sizes, device) for width in config.widths
        },
    )


def _batch(trainer: Trainer, num: int) -> tuple[Tensor, Tensor]:
    import torch

    images = trainer.batches.images[:num].float() / 255
    return images.contiguous(memory_format=torch.channels_last), trainer.batches.labels[:num]


def _per_image(run: Callable[[int], None], sizes: tuple[int, int], device: str) -> float:
    """Seconds; the whole batch if it can be waited for. The first call of each size warms up."""
    best = float("inf")
    for num in sorted({min(sizes), sizes[1]}):
        for _ in range(2):
            started = time.perf_counter()
            run(num)
            _wait(device)
            seconds = time.perf_counter() - started
        best = min(best, seconds / num)
        if seconds * sizes[1] / num > PATIENCE_S:
            break
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _estimate(
    model: Model, speed: _Speed, dataset: Dataset, config: EvalConfig, runs: Path
) -> Estimate:
    train = model.config
    left = train.epochs - _epochs_done(runs / model.name)
    validations = -(-left // train.val_every)
    num_val, num_attacked = len(dataset.val), min(train.val_attack_samples, len(dataset.val))
    passes = num_val * FORWARD_SHARE + num_attacked * (train.attack_steps + FORWARD_SHARE)
    validation = len(train.lambdas) * passes * sum(speed.passes.values())
    return Estimate(
        training_s=left * len(dataset.train) * speed.step + validations * validation,
        attack_s=_attack_s(model, speed, dataset, config),
    )


def _attack_s(model: Model, speed: _Speed, dataset: Dataset, config: EvalConfig) -> float:
    from oat_edge.attacks.plan import COSTS, Plan

    plan = Plan(
        attacks=config.attacks or (), eps=0.0, seed=0, num_classes=0,
        num_queries=config.num_queries, batch_size=config.batch_size,
    )  # fmt: skip
    passes = PASSES_PER_COST * sum(COSTS[part] for part in plan.parts)
    num = min(config.num_samples or 0, len(dataset.test))
    return num * passes * sum(speed.passes[point.width] for point in model.points.values())


def _epochs_done(run_dir: Path) -> int:
    """As many as metrics.jsonl has lines."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return sum("epoch" in json.loads(line) for line in lines)
