"""What the figures of a report suffer from, each with its evidence and a remedy.

A measurement is one (artifact, batch): rows that differ in λ only share it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from oat_edge.bench.report import Report, Row
from oat_edge.bench.statistics import FLAT_P_VALUE, FLAT_SPREAD, UNSTABLE_CV

Kind = Literal[
    "failed", "fallback", "throttled", "unstable", "busy", "λ-dependent latency",
    "transfer-bound", "enqueue-bound",
]  # fmt: skip

# trtexec calls a run enqueue-bound if the host takes longer than this share of the compute time to
# start it. With one request in flight the host's own part is what its latency has beyond the
# device's events: made ready and started before them, noticed after them. Without a CUDA graph the
# device also waits within `compute`, so that less of it is seen than there is.
ENQUEUE_BOUND = 0.8
# Other programs share the cores with the measurement.
BUSY_LOAD = 0.5
USUAL_PROVIDER = "CUDAExecutionProvider"
ENERGY = "energy_mj: "
# A figure, not the 95 of p95.
NUMBER = re.compile(r"(?<![A-Za-z\d.])\d[\d,]*(\.\d+)?")
FAILED = re.compile(r"latency_ms[\w, ]*: (.*)")
GRAPH = re.compile(r"(?:throughput_ips: )?cuda_graph: (?!off)(.*)")
WEAK = re.compile(r"(?:throughput_ips: )?typing: (weak.*)")
ELECTRIC = re.compile(r"power|current|voltage")

Measurement = tuple[str, int]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Finding:
    """A diagnosis of one measurement; None: of the machine."""

    kind: Kind
    at: Measurement | None
    evidence: str
    remedy: str
    size: float = 0.0
    """The largest is the worst."""
    covers: tuple[str, ...] = ()
    """Warnings that say the same."""


def diagnose(report: Report) -> tuple[Diagnosis, ...]:
    """All troubles, the gravest kinds first; findings that differ only in figures are one."""
    groups: dict[tuple[str, str, str], list[_Finding]] = {}
    for finding in _findings(report):
        key = finding.kind, NUMBER.sub("#", finding.evidence), finding.remedy
        groups.setdefault(key, []).append(finding)
    everything = list(_measurements(report))
    found = []
    for group in groups.values():
        worst = max(group, key=lambda one: one.size)
        where = list(dict.fromkeys(one.at for one in group if one.at is not None))
        differ = len({one.evidence for one in group}) > 1
        found.append(
            Diagnosis(
                worst.kind,
                _where(where, everything) if where else "this machine",
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
        for finding in _findings(report)
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


def _measurements(report: Report) -> dict[Measurement, Row]:
    """One row of each."""
    found: dict[Measurement, Row] = {}
    for row in report.rows:
        found.setdefault((row.artifact, row.batch), row)
    return found


def _findings(report: Report) -> Iterator[_Finding]:
    for at, row in _measurements(report).items():
        if row.status == "failed":
            yield _failed(at, row)
        yield from _fallback(at, row, report)
        yield from _throttled(at, row)
        yield from _unstable(at, row, report)
        yield from _transfer_bound(at, row)
        yield from _enqueue_bound(at, row)
    yield from _lambda_dependent(report)
    yield from _busy(report)


def _failed(at: Measurement, row: Row) -> _Finding:
    found = [match for text in row.warnings if (match := FAILED.match(text))]
    reason = found[0].group(1) if found else "it was not measured"
    remedy = "`oat-edge bench --resume` tries again"
    if "memory" in reason:
        remedy = f"smaller batches or a narrower width, or end other programs; {remedy}"
    elif "said nothing" in reason:
        remedy = f"{remedy}, --timeout SECONDS waits longer"
    same = tuple(text for text in row.warnings if text.endswith(f": {reason}"))
    return _Finding(kind="failed", at=at, evidence=reason, remedy=remedy, covers=same)


def _fallback(at: Measurement, row: Row, report: Report) -> Iterator[_Finding]:
    precision, _, emulated = row.precision.partition("-")
    if emulated == "emulated":
        yield _Finding(
            kind="fallback",
            at=at,
            evidence=f"{precision} is computed in float32 between casts",
            remedy="its times say nothing of real half precision, measure that on a GPU"
            if precision == "fp16"
            else f"an engine computes it: export --format trt --precision {precision}",
        )
    weak = {text: match.group(1) for text in row.warnings if (match := WEAK.match(text))}
    if weak:
        yield _Finding(
            kind="fallback",
            at=at,
            evidence=f"typing is {next(iter(weak.values()))}",
            remedy="TensorRT 10.12 or later types strongly",
            covers=tuple(weak),
        )
    nodes = report.settings.get("nodes", {}).get(row.artifact, {})
    elsewhere = {name: num for name, num in nodes.items() if name != USUAL_PROVIDER}
    if elsewhere:
        counts = ", ".join(f"{num} nodes in {name}" for name, num in elsewhere.items())
        yield _Finding(
            kind="fallback",
            at=at,
            evidence=f"{counts} of ONNX Runtime, not on the GPU",
            remedy="export again, or measure an engine (export --format trt)",
            size=sum(elsewhere.values()),
        )


def _throttled(at: Measurement, row: Row) -> Iterator[_Finding]:
    if row.state is None or not row.state.throttled:
        return
    reasons, heat = ", ".join(row.state.throttled), row.state.temperature_c
    electric = ELECTRIC.search(reasons.lower())
    yield _Finding(
        kind="throttled",
        at=at,
        evidence=reasons if heat is None else f"{reasons}; {heat:.0f} °C at most",
        remedy="check the supply and the power limit, or lower the clocks"
        if electric
        else "cool it, or lower its clocks or power mode",
        size=heat or 0.0,
        covers=_beginning(row, "throttled: "),
    )


def _unstable(at: Measurement, row: Row, report: Report) -> Iterator[_Finding]:
    latency, lock = row.latency_ms, _can_lock(report)
    if latency is not None and not latency.stable:
        known = latency.cv is not None
        yield _Finding(
            kind="unstable",
            at=at,
            evidence=f"CV {100 * (latency.cv or 0.0):.3g} %, steady is at most "
            f"{100 * UNSTABLE_CV:g} %"
            if known
            else "a single request shows no spread",
            remedy=("stop other programs" + (", and fix the clocks: --lock-clocks" if lock else ""))
            if known
            else "measure longer",
            size=latency.cv or 0.0,
            covers=_beginning(row, "unstable: CV", "latency_ms.cv: "),
        )
    for text in _beginning(row, "clocks: "):
        evidence = text.removeprefix("clocks: ").partition("; ")[0]
        clocks = [float(match[0].replace(",", "")) for match in NUMBER.finditer(evidence)]
        yield _Finding(
            kind="unstable",
            at=at,
            evidence=evidence,
            remedy="fix the clocks with --lock-clocks, or cool it" if lock else "cool it",
            size=max(clocks) / max(min(clocks), 1e-9) if clocks else 0.0,
            covers=(text,),
        )


def _can_lock(report: Report) -> bool:
    """Whether --lock-clocks could work, and was not given."""
    environment = report.environment
    if "clocks" in (report.settings.get("held") or {}).get("set", {}):
        return False
    if environment.jetson is not None:
        return environment.jetson.clocks_locked is not True
    # Virtual machines show no governor, and so nothing that could be fixed.
    return environment.device.kind != "cpu" or environment.power_mode is not None


def _busy(report: Report) -> Iterator[_Finding]:
    environment = report.environment
    load, cores = environment.load_average, environment.device.cores
    if load and cores and environment.recorded_from is None and load[0] > BUSY_LOAD * cores:
        yield _Finding(
            kind="busy",
            at=None,
            evidence=f"load average {load[0]:.1f} on {cores} cores in the minute before",
            remedy="stop other programs, or wait until it is quiet",
        )


def _lambda_dependent(report: Report) -> Iterator[_Finding]:
    for flat in report.lambda_flatness:
        spread, p_value = flat.max_relative_spread, flat.p_value
        if spread is None or p_value is None or spread <= FLAT_SPREAD or p_value >= FLAT_P_VALUE:
            continue
        rows = [row for row in report.rows if (row.artifact, row.batch) == (flat.artifact, flat.batch)]
        yield _Finding(
            kind="λ-dependent latency",
            at=(flat.artifact, flat.batch),
            evidence=f"medians of the λ differ by {100 * spread:.1f} % (p = {p_value:.3f})",
            remedy="λ only changes a tensor's contents: measure again on a quiet machine",
            size=spread,
            covers=tuple(t for row in rows for t in _beginning(row, "λ changes the latency")),
        )


def _transfer_bound(at: Measurement, row: Row) -> Iterator[_Finding]:
    if row.device_ms is None:
        return
    compute = row.device_ms.compute.p50
    name, part = max(
        (("in", row.device_ms.h2d.p50), ("out", row.device_ms.d2h.p50)), key=lambda one: one[1]
    )
    if part >= compute:
        yield _Finding(
            kind="transfer-bound",
            at=at,
            evidence=f"copying {name} takes {part:.3g} ms, computing {compute:.3g} ms (p50)",
            remedy="keep images on the device, or copy while it computes (img/s does)",
            size=part / compute if compute else float("inf"),
        )


def _enqueue_bound(at: Measurement, row: Row) -> Iterator[_Finding]:
    """The device waits for the host; or no CUDA graph, without which it may."""
    graphs = {text: match.group(1) for text in row.warnings if (match := GRAPH.match(text))}
    here = {text: why for text, why in graphs.items() if _is_of(why, row.batch)}
    without = f"no CUDA graph: {next(iter(here.values()))}" if here else None
    host, compute = _host_ms(row), 0.0 if row.device_ms is None else row.device_ms.compute.p50
    if host is not None and host >= ENQUEUE_BOUND * compute:
        evidence = f"the host takes {host:.3g} ms for itself, computing {compute:.3g} ms (p50)"
        if without is None and "cuda_graph: off" in row.warnings:
            without = "no CUDA graph: --no-cuda-graph"
        yield _Finding(
            kind="enqueue-bound",
            at=at,
            evidence=f"{evidence}; {without}" if without else evidence,
            remedy="a CUDA graph, larger batches" if without else "larger batches, a faster CPU",
            size=host / compute if compute else float("inf"),
            covers=(*graphs, "cuda_graph: off"),
        )
    elif without:
        yield _Finding(
            kind="enqueue-bound",
            at=at,
            evidence=f"perhaps, {without}",
            remedy="larger batches; what is said to be in the way",
            covers=tuple(graphs),
        )


def _host_ms(row: Row) -> float | None:
    """What a request takes beyond the device's own events, by the medians of its parts."""
    if row.device_ms is None or row.latency_ms is None:
        return None
    device = row.device_ms
    return row.latency_ms.p50 - device.h2d.p50 - device.compute.p50 - device.d2h.p50


def _is_of(remark: str, batch: int) -> bool:
    """Remarks stand on all rows of a file, and may name the batch that they are about."""
    named = re.search(r"at batch (\d+)", remark)
    return named is None or int(named.group(1)) == batch


def _beginning(row: Row, *starts: str) -> tuple[str, ...]:
    return tuple(text for text in row.warnings if text.startswith(starts))


def _where(some: Sequence[Measurement], everything: Sequence[Measurement]) -> str:
    """ "w0.50-fp32.onnx and 5 more, batch 1 and 16"; in part if not all of these are meant."""
    files = list(dict.fromkeys(file for file, _ in some))
    batches = sorted({batch for _, batch in some})
    num_files = len({file for file, _ in everything})
    first, more = files[0], len(files) - 1
    if len(files) == num_files > 1:
        names = f"all {num_files} files"
    else:
        names = first + (f" and {more} more" if more else "")
    text = f"{names}, batch {_listed(batches)}"
    full = sum(1 for file, batch in everything if file in files and batch in batches)
    return text if len(some) == full else f"{text} ({len(some)} of {full})"


def _listed(batches: Iterable[int]) -> str:
    *others, last = map(str, batches)
    return f"{', '.join(others)} and {last}" if others else last


def _first_number(text: str) -> float:
    match = NUMBER.search(text)
    return float(match[0].replace(",", "")) if match else 0.0
