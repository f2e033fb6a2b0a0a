"""A chosen operating point as one screen of text: what, why, and what the others would cost."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from oat_edge.bench.style import count
from oat_edge.calib.choose import OBJECTIVES, order, runners_up
from oat_edge.calib.decision import SHORT, amount, difference
from oat_edge.calib.goal import ACCURACIES, LATENCY, ROBUST, STANDARD, Goal
from oat_edge.calib.points import Point
from oat_edge.calib.pool import Pool
from oat_edge.cli.console import plain_table

COSTS = ("energy_mj", "memory_mb")
FIGURES = (LATENCY, ROBUST, STANDARD, *COSTS)
# One screen: what does not fit is in the files.
MAX_FRONT, MAX_WARNINGS, MAX_COLUMNS = 6, 3, 100


def print_choice(
    pool: Pool,
    goal: Goal,
    chosen: Point | None,
    front: Sequence[Point],
    warnings: Sequence[str],
    console: Console,
) -> None:
    """Print everything a person needs to judge the choice."""
    for line in _head(pool, goal):
        console.print(line)
    if chosen is not None:
        console.print(f"\n{_name(chosen)}   {chosen.artifact}", style="bold")
        console.print(_why(chosen, goal))
        if (costs := _costs(chosen, goal)) is not None:
            console.print(costs)
        others = front if not goal.limits else runners_up(pool.points, goal, chosen)
        if not goal.limits:
            console.print(
                f"on the front: {len(front)} of {len(pool.points)} points; every other one is "
                "worse in something, better in nothing"
            )
        elif others:
            console.print("runners-up, against the chosen one")
        if others:
            console.print(_others(chosen, others, goal))
    console.print(_searched(pool), style="dim")
    for text in warnings[:MAX_WARNINGS]:
        console.print(f"warning: {text}", style="yellow")
    if len(warnings) > MAX_WARNINGS:
        console.print(f"and {len(warnings) - MAX_WARNINGS} more (--json)", style="yellow")


def _head(pool: Pool, goal: Goal) -> list[str]:
    measured = pool.measured
    report, batch = measured.newest.report, pool.points[0].batch
    images = f"{count(batch, 'image')} per request"
    left_out = [
        text
        for num, text in (
            (measured.num_failed, "failed"),
            (measured.num_pinned, "with λ folded in (--pinned)"),
        )
        if num
        for text in [f"{num} {text}"]
    ]
    points = f"{len(pool.points)} points"
    if left_out:
        points += f" (left out: {', '.join(left_out)})"
    first, *rest = (_figure(figure, goal) for figure in OBJECTIVES[goal.prefer])
    wanted = [
        f"{_figure(limit.figure, goal)} {'≥' if limit.at_least else '≤'} "
        f"{amount(limit.figure, limit.bound)}"
        for limit in goal.limits
    ]
    confident = ", with 95 % confidence" if goal.confident else ""
    return [
        f"{report.bundle.run} on {measured.newest.label}, {images}",
        f"{points}; best {first}, then {', then '.join(rest)}",
        f"goal: {', '.join(wanted) or 'no constraints'}{confident}",
    ]


def _why(point: Point, goal: Goal) -> object:
    """Each figure with its interval, its limit and what is to spare."""
    table = plain_table(None, ["", "", "95 %", "limit", "to spare"])
    limits = {limit.figure: limit for limit in goal.limits}
    for figure in FIGURES:
        value = point.counted(figure)  # as its interval and the limit see it
        limit = limits.get(figure)
        if limit is None and figure in COSTS:
            continue
        span = point.interval(figure) if figure in ACCURACIES else None
        margin = None if limit is None else limit.margin(point)
        sign = "≥" if figure in ACCURACIES else "≤"
        note = ", worst case" if figure == ROBUST else ""
        table.add_row(
            f"  {_figure(figure, goal)}{note}",
            "not known" if value is None else amount(figure, value),
            "" if span is None else f"{100 * span[0]:.1f}–{100 * span[1]:.1f}",
            "" if limit is None else f"{sign} {amount(figure, limit.bound)}",
            "" if margin is None else difference(figure, margin),
        )
    return table


def _costs(point: Point, goal: Goal) -> str | None:
    """What else it costs, where that is not constrained."""
    limits = {limit.figure for limit in goal.limits}
    known = [
        f"{_figure(figure, goal)} {amount(figure, value)}"
        for figure in COSTS
        if figure not in limits and (value := getattr(point, figure)) is not None
    ]
    return f"  {', '.join(known)}" if known else None


def _others(chosen: Point, others: Sequence[Point], goal: Goal) -> object:
    columns = ["", "RA", "", "SA", "", f"{goal.percentile} ms", "", ""]
    table = plain_table(None, columns)
    ranked = sorted(others, key=lambda point: order(point, goal.prefer))
    several = len({point.format for point in [chosen, *others]}) > 1
    for point in ranked[:MAX_FRONT]:
        mark = "*" if point == chosen else " "
        cells = [f"{mark} {_name(point)}{f', {point.format}' if several else ''}"]
        for figure in (ROBUST, STANDARD):
            cells += _against(point.counted(figure), chosen.counted(figure))
        mine, its = chosen.latency_ms, point.latency_ms
        ratio = "" if not mine or its is None or point == chosen else f"×{its / mine:.2f}"
        cells += ["–" if its is None else f"{its:.4g}", ratio, _alike(point, chosen)]
        table.add_row(*cells)
    if len(ranked) > MAX_FRONT:
        table.add_row(f"  and {len(ranked) - MAX_FRONT} more (--json)")
    return table


def _against(share: float | None, chosen: float | None) -> tuple[str, str]:
    """An accuracy, and what it differs by from the chosen one's."""
    if share is None:
        return "–", ""
    if chosen is None or share == chosen:
        return f"{100 * share:.1f} %", ""
    return f"{100 * share:.1f} %", f"{100 * (share - chosen):+.1f}"


def _alike(point: Point, chosen: Point) -> str:
    """Whether the samples can tell the preferred accuracies apart at all."""
    if point == chosen:
        return ""
    spans = [(point.interval(figure), chosen.interval(figure)) for figure in (ROBUST, STANDARD)]
    apart = [one is None or two is None or one[1] < two[0] or two[1] < one[0] for one, two in spans]
    return "" if any(apart) else "intervals overlap"


def _searched(pool: Pool) -> str:
    if pool.not_searched is not None:
        return f"λ at the knots only, none between them was measured: {pool.not_searched}"
    if not pool.searched:
        return "λ between the knots: going by the knots, none could be better; none was measured"
    parts = [
        f"{name} {', '.join(f'{lam:.4g}' for lam in lambdas) or 'none'}"
        for name, lambdas in pool.searched.items()
    ]
    text = f"λ between the knots, measured on this machine: {'; '.join(parts)}"
    return text if len(text) <= MAX_COLUMNS else text[: MAX_COLUMNS - 2].rpartition(",")[0] + ", …"


def _name(point: Point) -> str:
    pinned = " (folded in)" if point.pinned else ""
    return f"width {point.width:g}, λ {point.lam:.4g}{pinned}, {point.precision}"


def _figure(figure: str, goal: Goal) -> str:
    return f"{goal.percentile} latency" if figure == LATENCY else SHORT[figure]
