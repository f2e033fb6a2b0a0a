"""What `oat-edge calibrate` does once its options are read: search λ, print, and write."""

from __future__ import annotations

import dataclasses
import json as json_module
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from oat_edge.bench import schema
from oat_edge.bundle import MANIFEST, Bundle
from oat_edge.calib.choose import choose, front_of
from oat_edge.calib.decision import decided, figures_of, missed, unknown
from oat_edge.calib.goal import Goal
from oat_edge.calib.points import Point
from oat_edge.calib.pool import Pool
from oat_edge.calib.reports import Measured
from oat_edge.cli.calibrate_summary import print_choice
from oat_edge.cli.console import steps
from oat_edge.errors import DependencyError, GoalError, InputError
from oat_edge.files import write_json

SCHEMA = "oat-edge/calibrate/1"


def bundle_of(measured: Measured, named: Path | None) -> tuple[Path, Bundle] | str:
    """The bundle that was benched and where it was found, or why it is not there."""
    newest = measured.newest
    sha256 = newest.report.bundle.checkpoint_sha256
    if named is not None:
        bundle = Bundle.open(named)
        if bundle.checkpoint_sha256 == sha256:
            return named, bundle
        raise InputError(
            f"bundle {named} is of checkpoint {bundle.checkpoint_sha256[:12]}…, the report of "
            f"{sha256[:12]}…: name the bundle that was benched"
        )
    for folder in (newest.path.parent, Path("bundles") / newest.report.bundle.run):
        if (folder / MANIFEST).is_file():
            bundle = Bundle.open(folder)
            if bundle.checkpoint_sha256 == sha256:
                return folder, bundle
    return "the bundle is not at hand (--bundle)"


def searched(
    measured: Measured,
    goal: Goal,
    at_hand: tuple[Path, Bundle] | str,
    console: Console,
    *,
    max_lambdas: int | None,
    queries: int,
) -> Pool:
    """Measure λ between the knots as far as that is possible here and could pay.

    max_lambdas: None is not at all.
    """
    if isinstance(at_hand, str):
        if queries:
            raise InputError(f"--queries {queries} needs the bundle: {at_hand}")
        return Pool(measured=measured, points=measured.points, not_searched=at_hand)
    from oat_edge.calib.lambda_search import SearchLimits
    from oat_edge.calib.refine import engines_of, find

    folder, bundle = at_hand
    if max_lambdas is None:
        if queries:
            raise InputError(
                f"--queries {queries} goes with the search of λ: leave out --no-search"
            )
        return Pool(
            measured=measured, points=measured.points, bundle=folder, not_searched="--no-search"
        )
    try:
        engines = engines_of(bundle, measured, queries=queries)
    except (InputError, DependencyError) as error:
        if queries:
            raise
        return Pool(
            measured=measured, points=measured.points, bundle=folder, not_searched=str(error)
        )
    with steps(console) as say:
        files: list[str] = []

        def tell(done: float, total: float, label: str) -> None:
            file = label.partition(" ")[0]
            if file not in files:
                files.append(file)
                say(f"measuring λ of {file}")
            say(f"measuring {label}", max(done, 0.01) / total)

        limits = SearchLimits(
            most=max_lambdas, through_zero=bundle.spec.conditioning == "single-bn"
        )
        found = find(measured.points, goal, engines, limits=limits, progress=tell)
    return Pool(
        measured=measured,
        points=found.points,
        bundle=folder,
        searched=found.searched,
        num_measured=found.num_measured,
        warnings=found.warnings,
    )


def conclude(pool: Pool, goal: Goal, target: Path, json: str | None, console: Console) -> None:
    """Print, write the files, and raise `GoalError` if nothing meets the goal."""
    chosen = choose(pool.points, goal)
    point, nearest, error = None, None, None
    if chosen is None:
        nearest, error = missed(pool.points, goal)
        warnings = (*unknown(pool.points, goal), *pool.measured.warnings, *pool.warnings)
    else:
        point = decided(
            chosen,
            pool.points,
            goal,
            pool.measured,
            num_measured=pool.num_measured,
            warnings=pool.warnings,
        )
        if pool.bundle is not None:
            try:
                point.artifact_in(Bundle.open(pool.bundle))
            except InputError as refusal:
                stale = f"open_runner will refuse this: {refusal}"
                point = dataclasses.replace(point, warnings=(stale, *point.warnings))
        warnings = point.warnings
    front = [one for one, on in zip(pool.points, front_of(pool.points), strict=True) if on]
    value = {
        "schema": SCHEMA,
        "goal": dataclasses.asdict(goal),
        "device": pool.measured.newest.label,
        "num_points": len(pool.points),
        "operating_point": None if point is None else point.to_json(),
        "nearest_miss": None if nearest is None else _point_json(nearest, goal),
        "front": [_point_json(one, goal) for one in front],
        "searched": {name: list(lambdas) for name, lambdas in pool.searched.items()},
        "not_searched": pool.not_searched,
        "warnings": list(warnings),
    }
    if json == "-":
        json_module.dump(value, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
        sys.stdout.write("\n")
    elif json is not None:
        write_json(Path(json), value)
    print_choice(pool, goal, chosen, front, warnings, console)
    if error is not None:
        # Not removed: with a goal that was mistyped, a good choice would go with it.
        earlier = f"; {target} is of an earlier choice" if target.exists() else ""
        raise GoalError(f"{error}{earlier}")
    assert point is not None
    point.save(target)
    console.print(f"operating point: {target}")
    folder = "BUNDLE" if pool.bundle is None else pool.bundle
    console.print(f'next: open_runner("{folder}", operating_point="{target}")')


def _point_json(point: Point, goal: Goal) -> dict[str, Any]:
    return {
        "artifact": point.artifact,
        "width": point.width,
        "lambda": point.lam,
        "precision": point.precision,
        "batch": point.batch,
        "margins": {limit.figure: limit.margin(point) for limit in goal.limits},
        "figures": schema.dump(figures_of(point)),
    }
