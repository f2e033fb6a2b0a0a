"""The result as data (schema oat-edge/reproduce/1): accuracies, differences, claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from oat_edge.bench import schema
from oat_edge.bench.environment import Environment, collect
from oat_edge.evaluation.outcome import Bool
from oat_edge.operating_point import OperatingPoint
from oat_edge.reproduce.claims import Claim, better_at_half, better_everywhere, no_worse
from oat_edge.reproduce.plan import Model, ReproduceConfig
from oat_edge.reproduce.scores import Right, Scores
from oat_edge.reproduce.spread import Spread, difference, share, weighted

SCHEMA = "oat-edge/reproduce/1"
MARGIN = 0.01
# What training at λ minimises the losses of, and the checkpoint is chosen by.
OBJECTIVE = "(1−λ)·SA + λ·RA"
# Settings of an evaluation that are the same for every network.
EVALUATION = ("eps", "seed", "attacks", "mode", "num_samples", "images")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One group of networks at one operating point."""

    group: str
    kind: str
    width: float
    lam: float
    seeds: tuple[int, ...]
    num_test: int
    """Images of the test split: standard accuracy is of all of them."""
    num_attacked: int
    standard_accuracy: Spread
    robust_accuracy: Spread
    """Clean and under every attack on this very point: an upper bound."""
    suspect_seeds: tuple[int, ...]
    """Networks with signs of masked gradients: do not trust their robust accuracy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """OATS less another group at one operating point, on the same images and seeds."""

    width: float
    lam: float
    other: str
    seeds: tuple[int, ...]
    standard_accuracy: Spread
    robust_accuracy: Spread
    objective: Spread
    """(1-λ)·standard + λ·robust."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """OATS beside one kind of networks."""

    kind: str
    differences: tuple[Difference, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReproduceReport:
    """Everything the comparison found."""

    environment: Environment
    settings: dict[str, Any]
    """Of the command."""
    evaluation: dict[str, Any]
    """How all networks were attacked, and on which images."""
    models: tuple[dict[str, Any], ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    missing: tuple[str, ...]
    """Models of the plan that are not done yet."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        value: dict[str, Any] = {"schema": SCHEMA, **schema.dump(self)}
        return value


def assemble(
    config: ReproduceConfig, models: Sequence[Model], scores: Sequence[Scores]
) -> ReproduceReport:
    """The report of all that is done; scores: some of the models', at least one."""
    missing = tuple(m.name for m in models if m.name not in {one.model.name for one in scores})
    rows = tuple(_rows(scores))
    return ReproduceReport(
        environment=collect(),
        settings=config.to_json(),
        evaluation={name: scores[0].settings[name] for name in EVALUATION},
        models=tuple(dict(one.facts) for one in scores),
        rows=rows,
        comparisons=tuple(_comparisons(scores)),
        missing=missing,
        warnings=tuple(_warnings(rows, missing)),
    )


def _rows(scores: Sequence[Scores]) -> list[Row]:
    rows = []
    for group in dict.fromkeys(one.model.group for one in scores):
        members = [one for one in scores if one.model.group == group]
        for point in members[0].points:
            right = [one.points[point] for one in members]
            rows.append(
                Row(
                    group=group,
                    kind=members[0].model.kind,
                    width=point.width,
                    lam=point.lam,
                    seeds=tuple(one.model.config.seed for one in members),
                    num_test=len(right[0].clean),
                    num_attacked=len(right[0].attacked),
                    standard_accuracy=share([one.clean for one in right]),
                    robust_accuracy=share([one.attacked for one in right]),
                    suspect_seeds=tuple(
                        one.model.config.seed for one in members if one.points[point].suspect
                    ),
                )
            )
    return rows


def _comparisons(scores: Sequence[Scores]) -> list[Comparison]:
    comparisons = []
    for kind in ("dedicated", "oat", "compared"):
        differences = [
            _difference(scores, kind, point)
            for point in sorted({p for one in scores if one.model.kind == kind for p in one.points})
        ]
        found = tuple(one for one in differences if one is not None)
        if found:
            comparisons.append(
                Comparison(kind=kind, differences=found, claims=tuple(_claims(kind, found)))
            )
    return comparisons


def _difference(scores: Sequence[Scores], kind: str, point: OperatingPoint) -> Difference | None:
    """At one point, over the seeds that both sides have; None: there are none yet."""
    oats = _by_seed(scores, "oats", point)
    other = _by_seed(scores, kind, point)
    seeds = [seed for seed in oats if seed in other]
    if not seeds:
        return None

    def less(which: Callable[[Right], Bool]) -> Spread:
        return difference(
            [which(oats[seed].points[point]) for seed in seeds],
            [which(other[seed].points[point]) for seed in seeds],
        )

    standard, robust = less(lambda right: right.clean), less(lambda right: right.attacked)
    return Difference(
        width=point.width,
        lam=point.lam,
        other=other[seeds[0]].model.group,
        seeds=tuple(seeds),
        standard_accuracy=standard,
        robust_accuracy=robust,
        objective=weighted(standard, robust, point.lam),
    )


def _by_seed(scores: Sequence[Scores], kind: str, point: OperatingPoint) -> dict[int, Scores]:
    return {
        one.model.config.seed: one
        for one in scores
        if one.model.kind == kind and point in one.points
    }


def _claims(kind: str, differences: Sequence[Difference]) -> list[Claim]:
    """What the project sets out to show of each kind."""
    by_figure: dict[str, dict[OperatingPoint, Spread]] = {"SA": {}, "RA": {}, OBJECTIVE: {}}
    for one in differences:
        point = OperatingPoint(one.width, one.lam)
        by_figure["SA"][point] = one.standard_accuracy
        by_figure["RA"][point] = one.robust_accuracy
        by_figure[OBJECTIVE][point] = one.objective
    if kind == "compared":
        than = f"that of {differences[0].other}"
        return [better_everywhere(what, than, found) for what, found in by_figure.items()]
    claims = []
    for what in ("SA", "RA"):
        than = "the dedicated networks'" if kind == "dedicated" else "that of one OAT per width"
        claims.append(no_worse(what, than, by_figure[what], MARGIN))
        claims.append(better_at_half(what, than, by_figure[what]))
    return claims


def _warnings(rows: Sequence[Row], missing: Sequence[str]) -> list[str]:
    warnings = []
    if missing:
        warnings.append(f"not done yet, so not in here: {', '.join(missing)}")
    if all(len(row.seeds) == 1 for row in rows):
        warnings.append(
            "one seed: the intervals are of the test images alone, training again gives other "
            "networks; --seeds 3 says how far they differ"
        )
    suspect = [f"{row.group} {row.width:g}@{row.lam:g}" for row in rows if row.suspect_seeds]
    if suspect:
        warnings.append(f"signs of masked gradients, do not trust the RA of: {', '.join(suspect)}")
    return warnings
