"""Evaluate exported files as they are deployed: replayed attack packs, and Square. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oat_edge import __version__
from oat_edge.attacks.square import square_settings
from oat_edge.bench.environment import Environment, collect
from oat_edge.bench.inputs import check_lambdas
from oat_edge.bench.report import BundleId
from oat_edge.bundle import Artifact, Bundle
from oat_edge.evaluation.cells import CELLS_FORMAT, CellStore
from oat_edge.evaluation.checks import Check, check_randomised, check_square
from oat_edge.evaluation.choice import SQUARE, choose
from oat_edge.evaluation.config import BUNDLE_ATTACKS, EvalConfig, level_warnings, mode
from oat_edge.evaluation.meter import Meter, Progress, silent
from oat_edge.evaluation.outcome import (
    Bool,
    Infer,
    Outcome,
    classified_right,
    evaluate,
    right_under_square,
)
from oat_edge.evaluation.pack_set import PackSet
from oat_edge.evaluation.precisions import FileOutcomes, precision_drops
from oat_edge.evaluation.report import (
    EvalReport,
    EvalRow,
    Evaluation,
    Subject,
    make_row,
    row_name,
)
from oat_edge.evaluation.transfer import transfer_grids
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime import Runner, artifacts_for, open_artifact
from oat_edge.runtime.padding import steady

CELLS = "eval"
NO_GRADIENTS = "an engine has no gradients; `oat-edge eval RUN` looks at those of its network"
GRADIENT_CHECKS = ("zero gradient", "single step", "restarts", "growing ε")


def evaluate_bundle(
    bundle: Bundle,
    config: EvalConfig,
    *,
    widths: Sequence[float],
    lambdas: Sequence[float],
    device: str = "cpu",
    fresh: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Replay the bundle's attack packs on its files, and run Square against them.

    device: "cpu", or "cuda" for the bundle's engines (its ONNX files where it has none).

    White-box attacks come from the packs, which were crafted on the folded network of the same
    weights; what they do to an engine that computes otherwise (quantised, say) is the transfer of
    an attack. A pack crafted on the int8 file is white-box on that one; Square sees every file
    itself. Files of several precisions are then set side by side, image by image.
    Raises `InputError` (no packs, an attack or a point that no pack holds, another ε),
    `DependencyError` (no GPU).
    """
    check_lambdas(bundle, lambdas)
    environment = collect(device=device)
    artifacts = artifacts_for(bundle, widths, device=device)
    choice = choose(bundle, artifacts, config, widths=widths, lambdas=lambdas)
    packs, attacks = choice.packs, choice.attacks
    meter = Meter(progress, sum(point.width for _, point in choice.points))
    passes = _passes(packs, config, attacks)
    rows: list[EvalRow] = []
    outcomes: dict[str, Outcome] = {}
    by_point: dict[OperatingPoint, Outcome] = {}
    files: list[FileOutcomes] = []
    cleared: set[Path] = set()

    def building(text: str, share: float = 0.0) -> None:
        progress(share, 1.0, text)

    for artifact in artifacts:
        with open_artifact(bundle, artifact, device=device, say=building) as runner:
            fitted = _fit(config, runner)
            store = CellStore(bundle.path / CELLS, _key(bundle, packs, config, runner, environment))
            if fresh and store.folder not in cleared:  # files of one engine share a folder
                store.clear()
                cleared.add(store.folder)
            by_lambda: dict[float, Outcome] = {}
            for point in (point for one, point in choice.points if one is artifact):
                meter.begin(f"{artifact.file} λ={point.lam:g}", point.width, passes)
                engine = _Engine(runner, artifact, point, packs, fitted, attacks, store, meter)
                row, outcome = engine.run()
                rows.append(row)
                outcomes[row_name(artifact.file, point)] = by_lambda[point.lam] = outcome
                if artifact.pinned_lambda is None:
                    by_point.setdefault(point, outcome)  # of several formats the first
                meter.end()
            files.append(
                FileOutcomes(
                    artifact=artifact,
                    backend=runner.backend,
                    precision=runner.precision,
                    outcomes=by_lambda,
                )
            )
    report = EvalReport(
        environment=environment,
        settings={
            "eps": packs.eps,
            "seed": config.seed,
            "attacks": _attack_settings(packs, config, attacks),
            "mode": mode(attacks, replayed=True),
            "num_samples": len(packs),
            "widths": list(widths),
            "lambdas": list(lambdas),
            "transfer": config.transfer,
            "images": "clean images of the attack packs",
        },
        bundle=BundleId(run=bundle.run, checkpoint_sha256=bundle.checkpoint_sha256),
        rows=tuple(rows),
        transfer=transfer_grids(by_point),
        samples_file=None,
        warnings=(*choice.warnings, *level_warnings(packs.eps, attacks)),
        precisions=precision_drops(bundle, packs, files),
    )
    return Evaluation(report=report, indices=packs.indices, labels=packs.labels, outcomes=outcomes)


def _fit(config: EvalConfig, runner: Runner) -> EvalConfig:
    """An engine takes no more images per request than it was built for."""
    limit = runner.batch_limit
    if limit is None or config.batch_size <= limit:
        return config
    return dataclasses.replace(config, batch_size=limit)


def _key(
    bundle: Bundle, packs: PackSet, config: EvalConfig, runner: Runner, environment: Environment
) -> dict[str, Any]:
    """All that the content of a cell depends on, but for what its name says.

    The engine and the machine too: a bundle travels with its cells.
    """
    return {
        "checkpoint_sha256": bundle.checkpoint_sha256,
        "indices": packs.indices.tolist(),
        "eps": packs.eps,
        "seed": config.seed,
        "images": hashlib.sha256(packs.images.tobytes() + packs.labels.tobytes()).hexdigest(),
        "engine": [runner.backend, runner.device, runner.precision, runner.versions],
        "machine": dataclasses.asdict(environment.device),
        "format": CELLS_FORMAT,
        "oat-edge": __version__,
    }


def _attack_settings(
    packs: PackSet, config: EvalConfig, attacks: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """By attack: its settings; of packs as they state them."""
    square = square_settings(eps=packs.eps, num_queries=config.num_queries, seed=config.seed)
    held = packs.settings
    settings = {name: held[name] for name in attacks if name in held}
    return settings | ({SQUARE: square} if SQUARE in attacks else {})


def _passes(packs: PackSet, config: EvalConfig, attacks: tuple[str, ...]) -> int:
    """Requests at one operating point, at most."""
    replayed = len(packs.sources) if config.transfer else len({a for a, _ in packs.sources})
    per_set = math.ceil(len(packs) / config.batch_size)
    square = config.num_queries if SQUARE in attacks else 0
    return (4 + replayed + square) * per_set


class _Engine:
    """One artifact at one λ."""

    def __init__(
        self,
        runner: Runner,
        artifact: Artifact,
        point: OperatingPoint,
        packs: PackSet,
        config: EvalConfig,
        attacks: tuple[str, ...],
        store: CellStore,
        meter: Meter,
    ) -> None:
        self.runner, self.artifact, self.point, self.packs = runner, artifact, point, packs
        self.config, self.attacks, self.store = config, attacks, store
        infer = steady(runner)
        self.infer: Infer = meter.counted(lambda image: infer(image, point.lam))

    def run(self) -> tuple[EvalRow, Outcome]:
        """The row and the outcome it is made of."""
        start = time.perf_counter()
        outcome = self._replayed()
        seconds = {"packs": time.perf_counter() - start}
        if SQUARE in self.attacks:
            right, seconds[SQUARE] = self._square(outcome.clean)
            attacked = {**outcome.attacked, SQUARE: right}
            outcome = dataclasses.replace(outcome, attacked=attacked)
        subject = Subject(
            artifact=self.artifact.file,
            sha256=self.artifact.sha256,
            format=self.artifact.format,
            backend=self.runner.backend,
            precision=self.runner.precision,
            pinned=self.artifact.pinned_lambda is not None,
        )
        return make_row(
            subject, self.point, outcome, self._checks(outcome), seconds=seconds
        ), outcome

    def _replayed(self) -> Outcome:
        batch_size = self.config.batch_size
        if self.attacks == (SQUARE,):
            images, labels = self.packs.images, self.packs.labels
            return Outcome(clean=classified_right(self.infer, images, labels, batch_size))
        return evaluate(
            self.infer,
            self.packs,
            self.point,
            transfer=self.config.transfer,
            batch_size=batch_size,
        )

    def _square(self, clean: Bool) -> tuple[Bool, float]:
        name = f"{self.artifact.sha256[:16]}-lambda{self.point.lam!r}-{self.config.num_queries}"
        cell = self.store.load(name)
        if cell is None:
            start = time.perf_counter()
            right = right_under_square(
                self.infer,
                self.packs.images,
                self.packs.labels,
                clean,
                eps=self.packs.eps,
                num_queries=self.config.num_queries,
                seed=self.config.seed,
                batch_size=self.config.batch_size,
            )
            cell = {"right": right}, {"seconds": time.perf_counter() - start}
            self.store.save(name, *cell)
        return cell[0]["right"], cell[1]["seconds"]

    def _checks(self, outcome: Outcome) -> list[Check]:
        checks = [
            check_randomised(
                self.infer, self.packs.images, self.packs.labels, self.config.batch_size
            )
        ]
        robust = outcome.robust
        white_box = [
            attack for attack in BUNDLE_ATTACKS if attack in outcome.attacked and attack != SQUARE
        ]
        if SQUARE in robust and white_box:
            right = np.logical_and.reduce([robust[attack] for attack in white_box])
            name = f"the replayed {' and '.join(white_box)}"
            complete = not {"apgd", "autoattack"}.isdisjoint(white_box)
            checks.append(check_square(name, right, robust[SQUARE], complete=complete))
        else:
            reason = "needs Square and an attack pack: add them to --attack"
            checks.append(Check(name=SQUARE, flagged=None, evidence=reason))
        return [
            *checks,
            *(Check(name=name, flagged=None, evidence=NO_GRADIENTS) for name in GRADIENT_CHECKS),
        ]
