"""Precisions side by side as text: a table, what the worst of them costs, and what is masked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from oat_edge.bench.table import short_kind
from oat_edge.cli.console import plain_table
from oat_edge.evaluation.pack_set import WORST

if TYPE_CHECKING:
    from rich.table import Table

    from oat_edge.evaluation.precisions import Drop, PrecisionDrop

WARNING = "warning: "
SIGN = {True: "yes", False: "no", None: "?"}
Key = tuple[str, str, float, float]


def precision_table(drops: Sequence[PrecisionDrop]) -> Table:
    """A line per width and λ, "SA / RA" in % a column per precision, what the last loses beside.

    Files with a pinned λ are left out. Lost: points, in brackets the 95 % interval of the paired
    difference.
    """
    lines: dict[Key, list[PrecisionDrop]] = {}
    for one in drops:
        if not one.pinned and one.reason is None:
            lines.setdefault((one.format, one.backend, one.width, one.lam), []).append(one)
    precisions = list(dict.fromkeys(one.precision for line in lines.values() for one in line))
    formats = {key[:2] for key in lines}
    headers = ["width", *(["kind"] if len(formats) > 1 else []), "λ", "fp32\nSA / RA"]
    headers += [f"{short_kind(('', name)).strip()}\nSA / RA" for name in precisions]
    headers += [f"{last}\nSA lost" for last in precisions[-1:]]
    headers += [f"{last}\nRA lost" for last in precisions[-1:]]
    masked = any(one.masking is not None for one in drops)
    table = plain_table(None, [*headers, *(["masks\ngradients"] if masked else [])])
    before: tuple[str, str, float] | None = None
    for (format, backend, width, lam), line in lines.items():
        if before not in (None, (format, backend, width)):
            table.add_row()
        before = format, backend, width
        by_precision = {one.precision: one for one in line}
        last = by_precision.get(precisions[-1])
        table.add_row(
            f"{width:g}",
            *([format] if len(formats) > 1 else []),
            f"{lam:.4g}",
            _both(line[0], "fp32"),
            *(
                _both(by_precision[name], "other") if name in by_precision else "–"
                for name in precisions
            ),
            _lost(last.standard_accuracy if last else None),
            _lost(last.worst if last else None),
            *([SIGN[last.masking.flagged] if last and last.masking else "–"] if masked else []),
        )
    return table


def largest_drops(drops: Sequence[PrecisionDrop]) -> Iterator[str]:
    """One line per kind: the most that it costs anywhere, with its interval."""
    kinds: dict[tuple[str, str, str], list[PrecisionDrop]] = {}
    for one in drops:
        if one.reason is None:
            kinds.setdefault((one.format, one.backend, one.precision), []).append(one)
    for (format, _, precision), some in kinds.items():
        parts = []
        for name in ("standard_accuracy", WORST):
            found = [(one.standard_accuracy if name != WORST else one.worst, one) for one in some]
            known = [(drop, one) for drop, one in found if drop is not None]
            if known:
                drop, one = max(known, key=lambda item: item[0].lost)
                what = "RA" if name == WORST else "SA"
                parts.append(f"{what} {_lost(drop)} at {_point(one)}")
        if parts:
            kind = short_kind((format, precision))
            yield f"{kind} loses at most {', '.join(parts)} (points to fp32, 95 %)"


def masking_lines(drops: Sequence[PrecisionDrop]) -> Iterator[str]:
    """What the check of every int8 file says; warnings where it masks gradients."""
    asked = [(one, one.masking) for one in drops if one.masking is not None]
    for one, check in asked:
        if check.flagged:
            yield (
                f"{WARNING}{_point(one)}: {one.artifact} only masks gradients: {check.evidence}; "
                "its RA under the attack on int8 is none"
            )
    clear = [one for one, check in asked if check.flagged is False]
    if clear and len(clear) == sum(check.flagged is not None for _, check in asked):
        yield f"Quantisation masks no gradients: no sign of it at {len(clear)} operating points."
    # What differs in the width only, of files or in words, is one reason.
    reasons: dict[str, list[tuple[str, str]]] = {}
    for one, check in asked:
        if check.flagged is None:
            alike = re.sub(r"\d+(\.\d+)?", "#", check.evidence)
            reasons.setdefault(alike, []).append((_point(one), check.evidence))
    for found in reasons.values():
        (point, reason), *others = found
        more = f" and {len(others)} more" if others else ""
        yield f"Not known whether quantisation masks gradients at {point}{more}: {reason}"


def _both(one: PrecisionDrop, which: str) -> str:
    shares = [getattr(drop, which) if drop else None for drop in (one.standard_accuracy, one.worst)]
    return " / ".join("–" if share is None else f"{100 * share:.1f}" for share in shares)


def _lost(drop: Drop | None) -> str:
    if drop is None:
        return "–"
    low, high = drop.lost_interval
    return f"{_points(drop.lost)} ({_points(low)} to {_points(high)})"


def _points(share: float) -> str:
    text = f"{100 * share:.1f}".replace("-", "−")
    return "0.0" if text == "−0.0" else text


def _point(one: PrecisionDrop) -> str:
    pinned = " pinned" if one.pinned else ""
    return f"{one.width:g}@{one.lam:g}{pinned}"
