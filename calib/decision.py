"""A choice with its reasons: the operating point's file, or what comes nearest and by how much."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from oat_edge.calib.choose import nearest_miss, runners_up
from oat_edge.calib.goal import LATENCY, ROBUST, STANDARD, Goal, Limit
from oat_edge.calib.operating_point_file import (
    Figures,
    OperatingPointFile,
    RunnerUp,
    SourceReport,
)
from oat_edge.calib.points import Point
from oat_edge.calib.reports import Measured
from oat_edge.errors import GoalError

UNITS = {LATENCY: "ms", "energy_mj": "mJ", "memory_mb": "MB"}
SHORT = {ROBUST: "RA", STANDARD: "SA", "energy_mj": "energy", "memory_mb": "memory"}
# Below this the selection of the best of many on the same images is not worth a word.
FEW_LAMBDAS = 3


def decided(
    chosen: Point,
    points: Sequence[Point],
    goal: Goal,
    measured: Measured,
    *,
    num_measured: int = 0,
    warnings: Sequence[str] = (),
) -> OperatingPointFile:
    """The file of a chosen point.

    points: all there was to choose among. num_measured: values of λ that were measured for it.
    """
    others = runners_up(points, goal, chosen)
    newest = measured.newest
    return OperatingPointFile(
        run=newest.report.bundle.run,
        checkpoint_sha256=newest.report.bundle.checkpoint_sha256,
        artifact=chosen.artifact,
        sha256=chosen.sha256,
        format=chosen.format,
        precision=chosen.precision,
        width=chosen.width,
        lam=chosen.lam,
        pinned=chosen.pinned,
        device=newest.label,
        runner_device="cuda" if newest.on_gpu else "cpu",
        threads=chosen.threads,
        batch=chosen.batch,
        constraints=dataclasses.asdict(goal),
        margins={limit.figure: limit.margin(chosen) for limit in goal.limits},
        figures=figures_of(chosen),
        sources=tuple(
            SourceReport(file=str(one.path), sha256=one.sha256, device=one.label)
            for one in measured.sources
        ),
        runners_up=tuple(
            RunnerUp(
                artifact=one.artifact,
                width=one.width,
                lam=one.lam,
                precision=one.precision,
                figures=figures_of(one),
            )
            for one in others
        ),
        warnings=(
            *_about(chosen, goal, num_measured),
            *unknown(points, goal),
            *measured.warnings,
            *warnings,
        ),
    )


def figures_of(point: Point) -> Figures:
    """A point's figures with their intervals."""

    def interval(figure: str) -> tuple[float, ...] | None:
        return point.interval(figure)

    return Figures(
        latency_ms=point.latency_ms,
        standard_accuracy=point.standard_accuracy,
        standard_accuracy_interval=interval(STANDARD),
        robust_accuracy=point.robust_accuracy,
        robust_accuracy_interval=interval(ROBUST),
        robust_accuracy_counted=point.counted(ROBUST),
        attacks=point.attacks,
        energy_mj=point.energy_mj,
        memory_mb=point.memory_mb,
        num_samples=point.num_samples,
        measured_between_knots=point.between_knots,
    )


def missed(points: Sequence[Point], goal: Goal) -> tuple[Point | None, GoalError]:
    """The point that comes nearest, and the error that says what it lacks."""
    nearest = nearest_miss(points, goal)
    if nearest is None:
        return None, GoalError("no operating point meets the goal: there is none at all")
    short = "; ".join(
        shortfall(limit, nearest, goal) for limit in goal.limits if not limit.met(nearest)
    )
    kept = ", ".join(_name(limit, goal) for limit in goal.limits if limit.met(nearest))
    alone = [
        _name(limit, goal) for limit in goal.limits if not any(limit.met(one) for one in points)
    ]
    hint = (
        f"no point meets the {' or the '.join(alone)} limit"
        if alone
        else "each limit can be met alone"
    )
    return nearest, GoalError(
        f"no operating point meets the goal ({hint}); nearest is {nearest.setting} "
        f"{nearest.precision}: {short}{f' ({kept} met)' if kept else ''}; loosen that, or train "
        "and bench more"
    )


def shortfall(limit: Limit, point: Point, goal: Goal) -> str:
    """What a point lacks to keep a limit."""
    margin, value = limit.margin(point), limit.value(point)
    name = _name(limit, goal)
    if margin is None or value is None:
        return f"{name} is not known, and so meets no limit"
    sign = "≥" if limit.at_least else "≤"
    lacks = "too low" if limit.at_least else "too high"
    what = f"{name} (lower end)" if limit.confident else name
    return (
        f"{what} {amount(limit.figure, value)}, wanted {sign} "
        f"{amount(limit.figure, limit.bound)}: {difference(limit.figure, -margin)} {lacks}"
    )


def amount(figure: str, value: float) -> str:
    """A figure with its unit."""
    if figure in UNITS:
        return f"{value:.4g} {UNITS[figure]}"
    return f"{100 * value:.1f} %"


def difference(figure: str, value: float) -> str:
    """A difference of figures with its unit. Not rounded to nothing."""
    if figure in UNITS:
        return f"{value:.3g} {UNITS[figure]}"
    return f"{100 * value:.1f} points" if abs(value) >= 0.0005 else f"{100 * value:.2g} points"


def _name(limit: Limit, goal: Goal) -> str:
    return f"{goal.percentile} latency" if limit.figure == LATENCY else SHORT[limit.figure]


def unknown(points: Sequence[Point], goal: Goal) -> list[str]:
    """Constrained figures that points lack."""
    found = []
    for limit in goal.limits:
        num = sum(limit.value(point) is None for point in points)
        if num:
            found.append(
                f"{num} of {len(points)} points have no {_name(limit, goal)}: a figure that is not "
                "known meets no limit"
            )
    return found


def _about(chosen: Point, goal: Goal, num_measured: int) -> list[str]:
    """What has to be known of the chosen point."""
    told: list[str] = []
    for limit in goal.limits:
        if limit.only_within_interval(chosen):
            span: Any = chosen.interval(limit.figure)
            told.append(
                f"{_name(limit, goal)} meets {amount(limit.figure, limit.bound)} only within its "
                f"95 % interval ({100 * span[0]:.1f}–{100 * span[1]:.1f}); --confident asks more"
            )
    if chosen.unstable:
        told.append("its latency was unstable: quiet the machine and bench again to rely on it")
    if chosen.between_knots:
        measured, more = chosen.robust_accuracy, ""
        if measured is not None and measured != chosen.counted(ROBUST):
            more = f" (measured {amount(ROBUST, measured)})"
        told.append(
            f"λ={chosen.lam:g} lies between knots: its RA is under packs crafted at the knots"
            f"{more}, an upper bound"
        )
    if num_measured >= FEW_LAMBDAS:
        told.append(
            f"the best of {num_measured} λ, measured on the same {chosen.num_samples} images: "
            "that flatters a little"
        )
    return told
