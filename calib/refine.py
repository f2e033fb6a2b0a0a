"""The best point of all, where λ between the knots counts too: files are searched as it pays.

Files that could hold something better than the best known point are searched, the most promising
first (`calib.lambda_search`). What is measured here takes the place of what the report says of
the same file: all its figures are then from one machine and under the same attacks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from oat_edge.bench.config import SQUARE
from oat_edge.bench.environment import collect
from oat_edge.bench.inputs import read_packs
from oat_edge.bundle import Artifact, Bundle
from oat_edge.calib.choose import choose, objectives
from oat_edge.calib.goal import Goal
from oat_edge.calib.lambda_search import (
    Gap,
    Measure,
    SearchLimits,
    engine_measure,
    gaps_of,
    promising,
    search,
    with_accuracy,
)
from oat_edge.calib.points import Point
from oat_edge.calib.reports import Measured
from oat_edge.errors import DependencyError, InputError, OatEdgeError
from oat_edge.evaluation.accuracy import Accuracy
from oat_edge.evaluation.meter import Progress, silent
from oat_edge.evaluation.pack_set import TRANSFER, PackSet
from oat_edge.runtime import open_artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class Engines:
    """A bundle whose files can be measured here, as its report has measured them."""

    bundle: Bundle
    packs: PackSet
    device: str
    """ "cpu" or "cuda"."""
    queries: int = 0
    """Of Square at every λ; 0 is without it."""
    seed: int = 0

    @contextmanager
    def open(self, point: Point) -> Iterator[Measure]:
        """The file of a point, open; raises what opening it raises."""
        artifact = self.artifact(point)
        with open_artifact(
            self.bundle, artifact, device=self.device, threads=point.threads
        ) as runner:
            yield engine_measure(
                runner, self.packs, point.width, queries=self.queries, seed=self.seed
            )

    def artifact(self, point: Point) -> Artifact:
        """The entry of a point's file; `InputError` if the bundle has another one now."""
        for artifact in self.bundle.artifacts:
            if artifact.file == point.artifact:
                if artifact.sha256 == point.sha256:
                    return artifact
                raise InputError(
                    f"{point.artifact} is another file since it was benched (sha256 "
                    f"{artifact.sha256[:12]}…, was {point.sha256[:12]}…): bench again"
                )
        raise InputError(f"bundle {self.bundle.path.name} has no {point.artifact} any more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What came of a search over all files."""

    chosen: Point | None
    points: tuple[Point, ...]
    """All that there was to choose among, at the knots and between them."""
    searched: dict[str, tuple[float, ...]]
    """By file, the λ between the knots that were measured here."""
    num_measured: int
    """Values of λ, the knots included, that were measured here."""
    warnings: tuple[str, ...]


def engines_of(bundle: Bundle, measured: Measured, *, queries: int = 0) -> Engines:
    """Everything that a search needs, checked before it starts.

    Raises `InputError` or `DependencyError` where it could not be compared with the report: other
    images, an attack that would be missing or new, another machine's GPU.
    """
    newest = measured.newest
    if bundle.checkpoint_sha256 != newest.report.bundle.checkpoint_sha256:
        raise InputError(
            f"bundle {bundle.path} is of checkpoint {bundle.checkpoint_sha256[:12]}…, the report "
            f"of {newest.report.bundle.checkpoint_sha256[:12]}…: name the bundle that was benched"
        )
    packs = read_packs(bundle)
    if not packs:
        raise InputError("the bundle has no attack packs (oat-edge export --attack-samples 256)")
    held = PackSet(packs, checkpoint_sha256=bundle.checkpoint_sha256, eps=bundle.spec.eps)
    for point in measured.points:
        if point.num_samples not in (None, len(held)):
            raise InputError(
                f"the report's figures are of {point.num_samples} images, the packs hold "
                f"{len(held)}: bench again"
            )
    attacks = {name for point in measured.points for name in point.attacks}
    if gone := attacks - {attack for attack, _ in held.sources} - {TRANSFER, SQUARE}:
        raise InputError(
            f"the report's worst case includes {', '.join(sorted(gone))}, which the bundle has no "
            "packs of: bench again"
        )
    if any(source.report.settings.get("transfer") is False for source in measured.sources):
        raise InputError(
            "the report's worst case is without transfer, which is all there is between knots: "
            "bench again without --no-transfer"
        )
    asked = newest.report.settings.get("queries", 1000)
    if not queries and any(SQUARE in point.attacks for point in measured.points):
        raise InputError(f"the report's worst case includes Square: pass --queries {asked}")
    if newest.on_gpu:
        here = collect(device="cuda").device
        there = newest.report.environment.device
        if (here.board, here.model) != (there.board, there.model):
            raise DependencyError(f"this machine is no {there.board or there.model}")
    seed = newest.report.settings.get("seed", 0)
    return Engines(
        bundle=bundle,
        packs=held,
        device="cuda" if newest.on_gpu else "cpu",
        queries=queries,
        seed=seed if isinstance(seed, int) else 0,
    )


def find(
    points: Sequence[Point],
    goal: Goal,
    engines: Engines,
    *,
    limits: SearchLimits | None = None,
    progress: Progress = silent,
) -> Found:
    """The best of the points and of the λ between them.

    limits: `most` is of all files together. A file that cannot be opened is left as the report has
    it, with a warning. progress: in values of λ, of which at most so many are measured.
    """
    limits = limits or SearchLimits()
    pool, searched, warnings = list(points), dict[str, tuple[float, ...]](), list[str]()
    done: set[object] = set()
    count = _Count(progress, limits.most)
    while (target := _next_file(pool, goal, engines, done, limits)) is not None:
        done.add(target.file)
        knots = _knots(pool, target, engines)
        try:
            with engines.open(target) as measure:
                counted = count.of(target.artifact, measure)
                again = [with_accuracy(old, old.lam, counted(old.lam)) for old in knots]
                pool = [again[knots.index(one)] if one in knots else one for one in pool]
                tried = search(
                    again,
                    counted,
                    goal,
                    best=choose(pool, goal),
                    limits=dataclasses.replace(limits, most=count.left),
                )
        except OatEdgeError as error:
            warnings.append(f"{target.artifact}: λ between its knots was not searched: {error}")
            continue
        pool += tried
        count.left -= len(tried)
        searched[target.artifact] = tuple(sorted(point.lam for point in tried))
        warnings += _differences(knots, again, stronger=bool(engines.queries))
    if engines.queries and any(point.file not in done for point in pool):
        warnings.append("Square attacked the files that were searched, not the others")
    return Found(
        chosen=choose(pool, goal),
        points=tuple(pool),
        searched=searched,
        num_measured=count.done,
        warnings=tuple(warnings),
    )


class _Count:
    """Progress in values of λ."""

    def __init__(self, progress: Progress, most: int) -> None:
        self.progress, self.left, self.done = progress, most, 0

    def of(self, name: str, measure: Measure) -> Measure:
        """The same measurement, told before each λ."""

        def told(lam: float) -> Accuracy:
            self.progress(self.done, self.done + self.left + 1, f"{name} λ={lam:g}")
            self.done += 1
            return measure(lam)

        return told


def _knots(pool: Sequence[Point], target: Point, engines: Engines) -> list[Point]:
    """A file's points at the λ that packs were crafted for."""
    trained = engines.packs.lambdas(target.width)
    return [one for one in pool if one.file == target.file and one.lam in trained]


def _next_file(
    pool: Sequence[Point], goal: Goal, engines: Engines, done: set[object], limits: SearchLimits
) -> Point | None:
    """A point of the file to search next; None if no search could change the choice."""
    best = choose(pool, goal)
    if engines.queries and best is not None and not best.pinned and best.file not in done:
        return best  # an attack that the report lacks: what it says of this file is to be seen
    firsts = {point.file: point for point in pool if not point.pinned and point.file not in done}
    ways: list[tuple[Gap, Point]] = [
        (gap, point)
        for point in firsts.values()
        for gap in gaps_of(_knots(pool, point, engines), through_zero=limits.through_zero)
        if promising(gap, goal, best, limits.resolution)
    ]
    if not ways:
        return None
    return min(ways, key=lambda way: objectives(way[0].ideal, goal.prefer))[1]


def _differences(
    reported: Sequence[Point], here: Sequence[Point], *, stronger: bool
) -> Iterator[str]:
    """Where this machine does not see what the report says, by more than one image."""
    figures: list[tuple[str, Callable[[Point], float | None]]] = [
        ("SA", lambda point: point.standard_accuracy)
    ]
    if not stronger:
        figures.append(("RA", lambda point: point.robust_accuracy))
    for name, figure in figures:
        pairs = [
            (abs(now - then), old, then, now)
            for old, new in zip(reported, here, strict=True)
            if (then := figure(old)) is not None and (now := figure(new)) is not None
        ]
        if pairs and (worst := max(pairs, key=lambda pair: pair[0]))[0] > 1.5 / (
            worst[1].num_samples or 1
        ):
            _, point, then, now = worst
            yield (
                f"{point.artifact} λ={point.lam:g}: {name} is {100 * now:.1f} % here, the report "
                f"says {100 * then:.1f} %"
            )
