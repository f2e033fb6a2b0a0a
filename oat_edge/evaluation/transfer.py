"""The transfer grid: does an attacker do better who ignores which λ and width are set?

Images crafted at every operating point (w', λ') are replayed at every (w, λ).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oat_edge.evaluation.outcome import Outcome
from oat_edge.operating_point import OperatingPoint


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferGrid:
    """Robust accuracy of every target under images crafted at every source, by one attack."""

    attack: str
    sources: tuple[OperatingPoint, ...]
    """Where images were crafted; columns."""
    targets: tuple[OperatingPoint, ...]
    """Where they were replayed; rows."""
    robust_accuracy: tuple[tuple[float | None, ...], ...]
    """[target][source], in [0, 1]; None: this pair was not measured."""
    num_samples: int


def transfer_grids(outcomes: Mapping[OperatingPoint, Outcome]) -> tuple[TransferGrid, ...]:
    """A grid for each attack that something was transferred of; none if nothing was."""
    crafted = sorted({source for outcome in outcomes.values() for source in outcome.transferred})
    targets = tuple(sorted(outcomes))
    grids = []
    for attack in dict.fromkeys(name for name, _ in crafted):
        sources = {point for name, point in crafted if name == attack}
        sources |= {
            point
            for point in targets
            if attack in outcomes[point].attacked or attack in outcomes[point].crafted
        }
        columns = tuple(sorted(sources))
        rows = tuple(
            tuple(_share(outcomes[target], attack, source, target) for source in columns)
            for target in targets
        )
        grids.append(
            TransferGrid(
                attack=attack,
                sources=columns,
                targets=targets,
                robust_accuracy=rows,
                num_samples=len(outcomes[targets[0]].clean),
            )
        )
    return tuple(grids)


def largest_gain(
    grids: Sequence[TransferGrid],
) -> tuple[float, TransferGrid, OperatingPoint, OperatingPoint] | None:
    """What an attacker gains at most who crafts at one other operating point.

    Share of the images (negative if none gains), grid, target and source. None: no target was
    attacked both at its own point and from elsewhere.
    """
    gains = [
        (own - share, grid, target, source)
        for grid in grids
        for target, shares in zip(grid.targets, grid.robust_accuracy, strict=True)
        for own in (dict(zip(grid.sources, shares, strict=True)).get(target),)
        for source, share in zip(grid.sources, shares, strict=True)
        if own is not None and share is not None and source != target
    ]
    return max(gains, key=lambda gain: gain[0], default=None)


def _share(
    outcome: Outcome, attack: str, source: OperatingPoint, target: OperatingPoint
) -> float | None:
    if source == target:
        right = outcome.crafted.get(attack, outcome.attacked.get(attack))
    else:
        right = outcome.transferred.get((attack, source))
    return None if right is None else float((outcome.clean & right).mean())
