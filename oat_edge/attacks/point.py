"""One operating point of a PyTorch network under every attack, part by part.

    N images, C channels, H/W pixels, K classes

A part (one attack stage, Square, the checks) is a cell on disk as soon as it is done, so that a
stopped evaluation goes on with the next.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from oat_edge.attacks.masking import gradient_checks
from oat_edge.attacks.plan import (
    CHECKS,
    PASSES,
    PGD,
    SQUARE,
    SQUARE_OF_AUTOATTACK,
    Images,
    Plan,
    cell_cost,
    cell_name,
)
from oat_edge.attacks.stages import ATTACKS, StageResult, run_stage, still_right
from oat_edge.evaluation.cells import Arrays, CellStore, Facts
from oat_edge.evaluation.checks import (
    Check,
    check_randomised,
    check_square,
    check_square_part,
    check_weaker,
)
from oat_edge.evaluation.meter import Meter
from oat_edge.evaluation.outcome import Bool, Outcome, right_under_square
from oat_edge.nn.fold import FoldedNetwork
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime.runner import Float32


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PointResult:
    """What was found at one operating point."""

    outcome: Outcome
    checks: list[Check]
    crafted: Tensor
    """(N, C, H, W) float32: what fools the network, else PGD-20's iterate of highest loss."""
    seconds: dict[str, float]
    """By part, whenever it was done."""
    warnings: tuple[str, ...]


class PointAttack:
    """The parts of one operating point, and what they have found so far."""

    def __init__(
        self,
        folded: FoldedNetwork,
        point: OperatingPoint,
        data: Images,
        plan: Plan,
        store: CellStore,
        meter: Meter,
    ) -> None:
        device = folded.table.device
        self.point, self.data, self.plan, self.store, self.meter = point, data, plan, store, meter
        self.x = torch.from_numpy(data.images).to(device).float() / 255
        self.y = torch.from_numpy(data.labels).to(device)
        logits = folded.at(torch.full((1,), point.lam, device=device))
        self.clean = still_right(logits, self.x, self.y)
        self.logits = meter.counted(logits)
        self.right: dict[str, Bool] = {}
        self.crafted = self.x.clone()
        self.checks: list[Check] = []
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []

    def run(self) -> PointResult:
        """Do the parts that are not done yet."""
        for part in self.plan.parts:
            if part == SQUARE:
                self._square()
            elif part == CHECKS:
                self._checks()
            elif part == PGD:
                self._pgd()
            else:
                self._autoattack(part)
        return PointResult(
            outcome=Outcome(
                clean=_numpy(self.clean),
                attacked=self._attacked(),
                crafted={self.plan.crafted: self._right_on_crafted()},
            ),
            checks=[*self.checks, *self._order_check(), self._square_check()],
            crafted=self.crafted,
            seconds=self.seconds,
            warnings=tuple(dict.fromkeys(self.warnings)),
        )

    def _pgd(self) -> None:
        def compute() -> tuple[Arrays, Facts]:
            result = self._stage(PGD, self.x, self.y)
            return {"right": _numpy(result.right), "x_adv": _numpy(result.x_adv)}, {}

        arrays, _ = self._cell(PGD, compute)
        self.right[PGD] = arrays["right"]
        self.crafted = torch.from_numpy(arrays["x_adv"]).to(self.x.device)

    def _autoattack(self, stage: str) -> None:
        """A stage of AutoAttack, on the images that its stages before left (not PGD's)."""
        before = next(reversed([r for s, r in self.right.items() if s != PGD]), _numpy(self.clean))

        def compute() -> tuple[Arrays, Facts]:
            left = torch.from_numpy(before).nonzero()[:, 0].to(self.x.device)
            right = before.copy()
            if not len(left):
                return {"right": right, "fooled": _numpy(left), "x_adv": _numpy(self.x[left])}, {}
            result = self._stage(stage, self.x[left], self.y[left])
            right[_numpy(left)] = _numpy(result.right)
            fooled = ~result.right
            arrays = {"fooled": _numpy(left[fooled]), "x_adv": _numpy(result.x_adv[fooled])}
            return {"right": right, **arrays}, {"warnings": list(result.warnings)}

        arrays, facts = self._cell(stage, compute)
        self.right[stage] = arrays["right"]
        self.warnings += facts.get("warnings", [])
        # PGD's images stay where they fool: they are of high loss, and so transfer best.
        new = self.right[PGD][arrays["fooled"]]
        x_adv = torch.from_numpy(arrays["x_adv"][new]).to(self.x.device)
        self.crafted[torch.from_numpy(arrays["fooled"][new]).to(self.x.device)] = x_adv

    def _square(self) -> None:
        def compute() -> tuple[Arrays, Facts]:
            right = right_under_square(
                self._infer,
                self.data.images,
                self.data.labels,
                _numpy(self.clean),
                eps=self.plan.eps,
                num_queries=self.plan.num_queries,
                seed=self.plan.seed,
                batch_size=self.plan.batch_size,
            )
            return {"right": right}, {}

        arrays, _ = self._cell(SQUARE, compute)
        self.right[SQUARE] = arrays["right"]

    def _checks(self) -> None:
        def compute() -> tuple[Arrays, Facts]:
            checks = [
                check_randomised(
                    self._infer, self.data.images, self.data.labels, self.plan.batch_size
                ),
                *gradient_checks(
                    self.logits,
                    self.x,
                    self.y,
                    torch.from_numpy(self.right[PGD]).to(self.x.device),
                    eps=self.plan.eps,
                    seed=self.plan.seed,
                    batch_size=self.plan.batch_size,
                ),
            ]
            return {}, {"checks": [dataclasses.asdict(check) for check in checks]}

        _, facts = self._cell(CHECKS, compute)
        self.checks = [Check(**check) for check in facts["checks"]]

    def _order_check(self) -> list[Check]:
        """AutoAttack, or APGD where it is all there is, against PGD-20."""
        strongest = self.plan.strongest
        if strongest == PGD:
            return []
        pgd, right = self.right[PGD] & _numpy(self.clean), self.right[ATTACKS[strongest][-1]]
        return [check_weaker("stronger attack", "PGD-20", strongest, pgd, right)]

    def _square_check(self) -> Check:
        gradient_based = [s for s in self.right if s not in (SQUARE, SQUARE_OF_AUTOATTACK)]
        white_box = np.logical_and.reduce(
            [_numpy(self.clean), *(self.right[stage] for stage in gradient_based)]
        )
        complete = len(gradient_based) > 1
        if SQUARE in self.right:
            name = "all white-box attacks" if complete else "PGD-20"
            return check_square(name, white_box, self.right[SQUARE], complete=complete)
        if SQUARE_OF_AUTOATTACK in self.right:
            left = self.right[gradient_based[-1]]
            fooled = left & ~self.right[SQUARE_OF_AUTOATTACK]
            return check_square_part(int(fooled.sum()), int(left.sum()), len(left))
        reason = "Square was not run: add square to --attack"
        return Check(name=SQUARE, flagged=None, evidence=reason)

    def _attacked(self) -> dict[str, Bool]:
        """By attack: right after the last of its stages."""
        attacked = {}
        for attack in (PGD, *self.plan.attacks):
            attacked[attack] = self.right[SQUARE if attack == SQUARE else ATTACKS[attack][-1]]
        return attacked

    def _right_on_crafted(self) -> Bool:
        """Right on the images that are replayed elsewhere: PGD-20's and the strongest attack's."""
        right: Bool = self.right[PGD] & self.right[ATTACKS[self.plan.strongest][-1]]
        return right

    def _stage(self, stage: str, x: Tensor, y: Tensor) -> StageResult:
        return run_stage(
            stage,
            self.logits,
            x,
            y,
            eps=self.plan.eps,
            seed=self.plan.seed,
            num_classes=self.plan.num_classes,
            batch_size=self.plan.batch_size,
        )

    def _cell(self, part: str, compute: Callable[[], tuple[Arrays, Facts]]) -> tuple[Arrays, Facts]:
        name = cell_name(self.point, part, self.plan)
        cell = self.store.load(name)
        if cell is None:
            passes = self.plan.num_queries if part == SQUARE else PASSES[part]
            passes *= math.ceil(len(self.y) / self.plan.batch_size)
            self.meter.begin(f"{self.point} {part}", cell_cost(self.point, part), passes)
            start = time.perf_counter()
            arrays, facts = compute()
            cell = arrays, {**facts, "seconds": time.perf_counter() - start}
            self.store.save(name, *cell)
            self.meter.end()
        self.seconds[part] = cell[1]["seconds"]
        return cell

    @functools.cached_property
    def _infer(self) -> Callable[[Float32], Float32]:
        @torch.no_grad()
        def infer(image: Float32) -> Float32:
            out: Float32 = self.logits(torch.from_numpy(image).to(self.x.device)).cpu().numpy()
            return out

        return infer


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
