"""Evaluate a trained PyTorch network white-box, over widths and λ."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oat_edge import __version__
from oat_edge.bench.environment import collect, library_versions
from oat_edge.bench.report import BundleId
from oat_edge.evaluation.cells import CELLS_FORMAT, CellStore
from oat_edge.evaluation.config import (
    ATTACKS,
    NUM_SAMPLES,
    EvalConfig,
    check_levels,
    check_run_attacks,
    level_warnings,
    mode,
)
from oat_edge.evaluation.meter import Meter, Progress, silent
from oat_edge.evaluation.outcome import Outcome
from oat_edge.evaluation.pack import chosen_indices
from oat_edge.evaluation.report import (
    EvalReport,
    Evaluation,
    Subject,
    make_row,
    row_name,
)
from oat_edge.evaluation.transfer import transfer_grids
from oat_edge.operating_point import OperatingPoint, grid

if TYPE_CHECKING:
    from oat_edge.attacks.plan import Images, Plan
    from oat_edge.attacks.point import PointResult
    from oat_edge.data import Dataset
    from oat_edge.nn.fold import FoldedNetwork
    from oat_edge.train.checkpoint import Checkpoint

CELLS = "eval"
# One pass over the images; PGD-20's hundred passes there and back cost 1.
REPLAY_COST = 1 / 300


def evaluate_network(
    checkpoint: Checkpoint,
    config: EvalConfig,
    *,
    dataset: Dataset,
    widths: Sequence[float],
    lambdas: Sequence[float],
    folder: Path,
    device: str = "cpu",
    fresh: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Attack the folded network of each width at each λ.

    folder: the run; cells go to a folder inside, and those of an earlier evaluation of the same
    checkpoint, images, ε, seed and attack settings are used again, unless `fresh`.
    Raises `InputError` (too few classes for APGD), `DependencyError` (no pyautoattack).
    """
    import torch

    from oat_edge.attacks.plan import cell_cost, cell_name
    from oat_edge.attacks.point import PointAttack
    from oat_edge.nn.fold import fold

    plan = _plan(checkpoint, config)
    data = _choose(dataset, config)
    store = CellStore(folder / CELLS, _key(checkpoint, plan, data, device))
    if fresh:
        store.clear()
    points = grid(tuple(widths), tuple(lambdas))
    todo = [
        (point, part)
        for point in points
        for part in plan.parts
        if store.load(cell_name(point, part, plan)) is None
    ]
    transfer = config.transfer and len(points) > 1
    transfer_cost = REPLAY_COST * len(points) ** 2 if transfer else 0.0
    batches = math.ceil(len(data.labels) / plan.batch_size)
    meter = Meter(progress, sum(cell_cost(*cell) for cell in todo) + transfer_cost)
    # Gradients are up to 1.5x faster in this layout.
    checkpoint.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    networks = {width: fold(checkpoint.network, width) for width in widths}
    results = {
        point: PointAttack(networks[point.width], point, data, plan, store, meter).run()
        for point in points
    }
    outcomes = {point: result.outcome for point, result in results.items()}
    if transfer:
        meter.begin("transfer", transfer_cost, len(points) ** 2 * batches)
        outcomes = _transferred(networks, results, data, plan, meter)
        meter.end()
    subject = Subject(
        artifact="checkpoint.safetensors",
        sha256=checkpoint.sha256,
        format="checkpoint",
        backend=f"torch-{device}",
        precision="fp32",
    )
    rows = tuple(
        make_row(
            subject, point, outcomes[point], result.checks,
            seconds=result.seconds, warnings=result.warnings,
        )
        for point, result in results.items()
    )  # fmt: skip
    report = EvalReport(
        environment=collect(),
        settings={
            **_settings(plan),
            "num_samples": len(data.indices),
            "widths": list(widths),
            "lambdas": list(lambdas),
            "transfer": config.transfer,
            "images": f"{dataset.name}, test split, seeded choice of {len(data.indices)}",
            "cells": {"done_before": len(points) * len(plan.parts) - len(todo), "new": len(todo)},
        },
        bundle=BundleId(run=checkpoint.run, checkpoint_sha256=checkpoint.sha256),
        rows=rows,
        transfer=transfer_grids(outcomes),
        samples_file=None,
        warnings=(*_fewer(config, data), *level_warnings(plan.eps, plan.attacks)),
    )
    return Evaluation(
        report=report,
        indices=data.indices,
        labels=data.labels,
        outcomes={row_name(subject.artifact, point): o for point, o in outcomes.items()},
    )


def _plan(checkpoint: Checkpoint, config: EvalConfig) -> Plan:
    from oat_edge.attacks.autoattack import check_num_classes, implementation
    from oat_edge.attacks.plan import PGD, SQUARE, Plan

    check_run_attacks(config.attacks)
    num_classes = checkpoint.spec.num_classes
    attacks = ATTACKS if config.attacks is None else config.attacks
    if set(attacks) - {PGD, SQUARE}:  # told before any work
        check_num_classes(num_classes)
        implementation()
    eps = checkpoint.spec.eps if config.eps is None else config.eps
    if SQUARE in attacks:
        check_levels(eps)
    return Plan(
        attacks=attacks,
        eps=eps,
        seed=config.seed,
        num_classes=num_classes,
        num_queries=config.num_queries,
        batch_size=config.batch_size,
    )


def _choose(dataset: Dataset, config: EvalConfig) -> Images:
    """A seeded choice of test images: the one that `export` makes for packs of that size."""
    from oat_edge.attacks.plan import Images

    num = config.num_samples or NUM_SAMPLES
    indices = chosen_indices(len(dataset.test), num, config.seed)
    split = dataset.test.take(indices)
    return Images(images=split.images, labels=split.labels, indices=indices)


def _fewer(config: EvalConfig, data: Images) -> tuple[str, ...]:
    num, wanted = len(data.indices), config.num_samples or 0
    return (f"samples: {wanted} asked for, the test split has {num}",) if num < wanted else ()


def _key(checkpoint: Checkpoint, plan: Plan, data: Images, device: str) -> dict[str, Any]:
    """All that the content of a cell depends on, but for what its name says."""
    from oat_edge.attacks.stages import RESTARTS, STEPS, STEPS_PER_RADIUS

    versions = library_versions()
    return {
        "checkpoint_sha256": checkpoint.sha256,
        "indices": data.indices.tolist(),
        "images": hashlib.sha256(data.images.tobytes() + data.labels.tobytes()).hexdigest(),
        "eps": plan.eps,
        "seed": plan.seed,
        "batch_size": plan.batch_size,
        "format": CELLS_FORMAT,
        "oat-edge": __version__,
        "torch": versions.get("torch"),
        "pyautoattack": versions.get("pyautoattack"),
        "device": device,
        "pgd20": [STEPS, RESTARTS, STEPS_PER_RADIUS],
    }


def _settings(plan: Plan) -> dict[str, Any]:
    from oat_edge.attacks.plan import PGD, SQUARE
    from oat_edge.attacks.square import square_settings
    from oat_edge.attacks.stages import attack_settings

    settings: dict[str, Any] = {}
    for attack in dict.fromkeys((PGD, *plan.attacks)):
        if attack != SQUARE:
            settings[attack] = attack_settings(attack, plan.eps, plan.seed, plan.num_classes)
        else:
            settings[attack] = square_settings(
                eps=plan.eps, num_queries=plan.num_queries, seed=plan.seed
            )
    return {"eps": plan.eps, "seed": plan.seed, "attacks": settings, "mode": mode(tuple(settings))}


def _transferred(
    networks: dict[float, FoldedNetwork],
    results: dict[OperatingPoint, PointResult],
    data: Images,
    plan: Plan,
    meter: Meter,
) -> dict[OperatingPoint, Outcome]:
    """The outcomes with every point's images replayed at every other point."""
    import torch

    from oat_edge.attacks.stages import still_right

    outcomes = {}
    for target, result in results.items():
        device = result.crafted.device
        labels = torch.from_numpy(data.labels).to(device)
        lam = torch.full((1,), target.lam, device=device)
        logits = meter.counted(networks[target.width].at(lam))
        transferred = {
            (plan.crafted, source): still_right(logits, other.crafted, labels, plan.batch_size)
            .cpu()
            .numpy()
            for source, other in results.items()
            if source != target
        }
        outcomes[target] = dataclasses.replace(result.outcome, transferred=transferred)
    return outcomes
