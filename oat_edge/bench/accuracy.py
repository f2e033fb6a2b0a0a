"""SA and RA of an engine: packs replayed on it, and Square attack against the engine itself.

An engine has no gradients (DESIGN, section 7). Packs were made white-box on the same weights;
Square sees the engine as it runs, quantisation included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from oat_edge.attacks.square import square_settings
from oat_edge.bench.config import PACK, SQUARE, BenchConfig
from oat_edge.bench.latency import Progress
from oat_edge.bench.progress import ImageCount
from oat_edge.evaluation.outcome import (
    Bool,
    Infer,
    Outcome,
    classified_right,
    evaluate,
    right_under_square,
)
from oat_edge.evaluation.pack_set import PackSet
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime.padding import steady
from oat_edge.runtime.runner import Float32, Runner

# Of Square's queries, the share that is spent (fooled images need no more); only for the estimate.
SPENT = 0.35


def measure_outcomes(
    runner: Runner,
    packs: PackSet | None,
    width: float,
    lambdas: Sequence[float],
    config: BenchConfig,
    progress: Progress,
    *,
    label: str,
) -> dict[float, Outcome]:
    """By λ, which of the packs' images are right under the chosen attacks.

    There is no entry for a λ that nothing attacks: no pack of this width holds it, and Square was
    not asked for. progress: the seconds of this call.
    """
    if packs is None:
        return {}
    config = _fitting(runner, config)
    infer = steady(runner)
    points = _attacked_points(packs, width, lambdas, config)
    left = sum(_num_images(packs, point, config) for point in points)
    count = ImageCount(progress, label, left=left)
    return {point.lam: _outcome(infer, packs, point, config, count) for point in points}


def accuracy_seconds(
    per_image_s: float,
    packs: PackSet,
    width: float,
    lambdas: Sequence[float],
    config: BenchConfig,
) -> float:
    """About how long `measure_outcomes` will take of a network that takes so long an image."""
    points = _attacked_points(packs, width, lambdas, config)
    return per_image_s * sum(_num_images(packs, point, config) for point in points)


def attack_settings(packs: PackSet | None, config: BenchConfig) -> dict[str, dict[str, Any]]:
    """By attack: ε and the attack's own settings; of packs as they state them."""
    if packs is None:
        return {}
    settings: dict[str, dict[str, Any]] = {}
    if PACK in config.attacks:
        settings |= {name: {"eps": packs.eps, **one} for name, one in packs.settings.items()}
    if SQUARE in config.attacks:
        settings[SQUARE] = square_settings(
            eps=packs.eps, num_queries=config.queries, seed=config.seed
        )
    return settings


def _fitting(runner: Runner, config: BenchConfig) -> BenchConfig:
    """With no more images per request than the runner takes."""
    most = min(config.accuracy_batch, runner.batch_limit or config.accuracy_batch)
    return dataclasses.replace(config, accuracy_batch=most)


def _attacked_points(
    packs: PackSet, width: float, lambdas: Sequence[float], config: BenchConfig
) -> list[OperatingPoint]:
    points = [OperatingPoint(width, lam) for lam in lambdas]
    return points if SQUARE in config.attacks else [p for p in points if p in packs.points]


def _num_images(packs: PackSet, point: OperatingPoint, config: BenchConfig) -> int:
    """About how many images the network is shown at one operating point."""
    replays = sum(source == point or config.transfer for _, source in packs.sources)
    num = len(packs) * (1 + (replays if PACK in config.attacks else 0))
    return num + (_guessed_queries(packs, config) if SQUARE in config.attacks else 0)


def _outcome(
    engine: Callable[[Float32, float], Float32],
    packs: PackSet,
    point: OperatingPoint,
    config: BenchConfig,
    count: ImageCount,
) -> Outcome:
    def infer(image: Float32) -> Float32:
        logits = engine(image, point.lam)
        count.show(len(image))
        return logits

    if PACK in config.attacks:
        outcome = evaluate(
            infer, packs, point, transfer=config.transfer, batch_size=config.accuracy_batch
        )
    else:
        clean = classified_right(infer, packs.images, packs.labels, config.accuracy_batch)
        outcome = Outcome(clean=clean)
    if SQUARE not in config.attacks:
        return outcome
    right = _right_under_square(infer, packs, outcome.clean, config, count)
    return dataclasses.replace(outcome, attacked={**outcome.attacked, SQUARE: right})


def _right_under_square(
    infer: Infer, packs: PackSet, clean: Bool, config: BenchConfig, count: ImageCount
) -> Bool:
    to_come = count.left - _guessed_queries(packs, config)
    before, done = count.shown, 0

    def step(queries: int) -> None:
        """Images that were shown in this step may hold out to the end; no others can."""
        nonlocal before, done
        done += queries
        count.left = to_come + (count.shown - before) * (config.queries - done)
        before = count.shown

    return right_under_square(
        infer,
        packs.images,
        packs.labels,
        clean,
        eps=packs.eps,
        num_queries=config.queries,
        seed=config.seed,
        batch_size=config.accuracy_batch,
        progress=step,
    )


def _guessed_queries(packs: PackSet, config: BenchConfig) -> int:
    return round(SPENT * len(packs) * config.queries)
