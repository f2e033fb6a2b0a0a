"""What the figures of a report suffer from, each with its evidence and a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from oat_edge.bench.finding import Finding, Kind, Measurement
from oat_edge.bench.findings import NUMBER, findings, measurements
from oat_edge.bench.report import Report

ENERGY = "energy_mj: "


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One trouble of one or more measurements."""

    kind: Kind
    where: str
    """Files and batches, condensed; or the machine."""
    evidence: str
    """With the figure, the worst of all that it is about."""
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.evidence} → {self.remedy}"


def diagnose(report: Report) -> tuple[Diagnosis, ...]:
    """All troubles, the gravest kinds first; findings that differ only in figures are one."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings(report):
        key = finding.kind, NUMBER.sub("#", finding.evidence), finding.remedy
        groups.setdefault(key, []).append(finding)
    everything = list(measurements(report))
    found = []
    for group in groups.values():
        worst = max(group, key=lambda one: one.size)
        where = list(dict.fromkeys(one.at for one in group if one.at is not None))
        differ = len({one.evidence for one in group}) > 1
        found.append(
            Diagnosis(
                worst.kind,
                _where(where, everything) if where else "the machine",
                worst.evidence + (f" (the worst of {len(where)})" if differ else ""),
                worst.remedy,
            )
        )
    return tuple(sorted(found, key=lambda one: get_args(Kind).index(one.kind)))


def undiagnosed(report: Report) -> tuple[str, ...]:
    """Warnings of rows that no diagnosis covers; those that differ only in figures are one.

    Without the reasons for unknown energy if no row knows it: they are the machine's.
    """
    covered = {
        (finding.at[0], text)
        for finding in findings(report)
        if finding.at is not None
        for text in finding.covers
    }
    no_energy = all(row.energy_mj is None for row in report.rows)
    groups: dict[str, list[str]] = {}
    for row in report.rows:
        for text in row.warnings:
            if (row.artifact, text) not in covered and not (no_energy and text.startswith(ENERGY)):
                groups.setdefault(NUMBER.sub("#", text), []).append(text)
    lines = []
    for texts in groups.values():
        worst = max(texts, key=_first_number)
        lines.append(f"{worst} (the worst of {len(texts)} rows)" if len(texts) > 1 else worst)
    return tuple(lines)


def _where(some: Sequence[Measurement], everything: Sequence[Measurement]) -> str:
    """ "w0.50-fp32.onnx and 5 more, batch 1 and 16", and how many of these if not all."""
    files = list(dict.fromkeys(file for file, _ in some))
    batches = sorted({batch for _, batch in some})
    num_files = len({file for file, _ in everything})
    first, more = files[0], len(files) - 1
    if len(files) == num_files > 1:
        names = f"all {num_files} files"
    else:
        names = first + (f" and {more} more" if more else "")
    text = f"{names}, batch {listed(batches)}"
    full = sum(1 for file, batch in everything if file in files and batch in batches)
    return text if len(some) == full else f"{text} ({len(some)} of {full})"


def listed(batches: Iterable[int]) -> str:
    """ "1, 4 and 16"."""
    *others, last = map(str, batches)
    return f"{', '.join(others)} and {last}" if others else last


def _first_number(text: str) -> float:
    match = NUMBER.search(text)
    return float(match[0].replace(",", "")) if match else 0.0
