"""What the figures of a report suffer from: a rule for each kind of trouble.

A measurement is one (artifact, batch): rows that differ in λ only share it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from oat_edge.bench.finding import Finding, Measurement
from oat_edge.bench.gpu_findings import THROUGHPUT, enqueue_bound, transfer_bound
from oat_edge.bench.report import Report, Row
from oat_edge.bench.statistics import FLAT_P_VALUE, FLAT_SPREAD, UNSTABLE_CV

# Other programs share the cores with the measurement.
BUSY_LOAD = 0.5
USUAL_PROVIDER = "CUDAExecutionProvider"
# A figure, not the 95 of p95.
NUMBER = re.compile(r"(?<![A-Za-z\d.])\d[\d,]*(\.\d+)?")
FAILED = re.compile(r"latency_ms[\w, ]*: (.*)")
WEAK = re.compile(rf"(?:{THROUGHPUT})?typing: (weak.*)")
ELECTRIC = re.compile(r"power|current|voltage")


def measurements(report: Report) -> dict[Measurement, Row]:
    """One row of each."""
    found: dict[Measurement, Row] = {}
    for row in report.rows:
        found.setdefault((row.artifact, row.batch), row)
    return found


def findings(report: Report) -> Iterator[Finding]:
    """All of a report, each of one measurement."""
    for at, row in measurements(report).items():
        yield from _failed(at, row, report)
        yield from _fallback(at, row, report)
        yield from _throttled(at, row)
        yield from _unstable(at, row, report)
        yield from transfer_bound(at, row)
        yield from enqueue_bound(at, row)
    yield from _lambda_dependent(report)
    yield from _busy(report)
    yield from _masked(report)


def _failed(at: Measurement, row: Row, report: Report) -> Iterator[Finding]:
    """Its latency, its throughput, its memory, its file's accuracies: each can fail by itself."""
    file, batch = at
    reasons: dict[str, str] = {}
    if row.status == "failed":
        found = [match[1] for text in row.warnings if (match := FAILED.match(text))]
        reasons[next(iter(found), "it was not measured")] = ""
    for what, cell in (
        ("throughput", f"throughput {file} batch {batch}"),
        ("memory", f"memory {file} batch {batch}"),
        ("accuracy", f"accuracy {file}"),
    ):
        if cell in report.failures:
            reasons.setdefault(report.failures[cell], f"{what}: ")
    for reason, what in reasons.items():
        remedy = "`oat-edge bench --resume` tries again"
        if "out of memory" in reason or "memory runs out" in reason:
            remedy = f"smaller batches or a narrower width, or end other programs; {remedy}"
        elif "said nothing" in reason or "took over" in reason:
            remedy = f"{remedy}, --timeout SECONDS waits longer"
        covers = tuple(
            text
            for one in report.rows
            if one.artifact == file
            for text in one.warnings
            if text.endswith(f": {reason}")
        )
        yield Finding(
            kind="failed", at=at, evidence=f"{what}{reason}", remedy=remedy, covers=covers
        )


def _fallback(at: Measurement, row: Row, report: Report) -> Iterator[Finding]:
    precision, _, emulated = row.precision.partition("-")
    if emulated == "emulated":
        yield Finding(
            kind="fallback",
            at=at,
            evidence=f"{precision} is computed in float32 between casts",
            remedy="its times say nothing of real half precision, measure that on a GPU"
            if precision == "fp16"
            else f"an engine computes it: export --format trt --precision {precision}",
        )
    weak = {text: match.group(1) for text in row.warnings if (match := WEAK.match(text))}
    if weak:
        yield Finding(
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
        yield Finding(
            kind="fallback",
            at=at,
            evidence=f"{counts} of ONNX Runtime, not on the GPU",
            remedy="export again, or measure an engine (export --format trt)",
            size=sum(elsewhere.values()),
        )


def _throttled(at: Measurement, row: Row) -> Iterator[Finding]:
    if row.state is None or not row.state.throttled:
        return
    reasons, heat = ", ".join(row.state.throttled), row.state.temperature_c
    electric = ELECTRIC.search(reasons.lower())
    yield Finding(
        kind="throttled",
        at=at,
        evidence=reasons if heat is None else f"{reasons}; {heat:.0f} °C at most",
        remedy="check the supply and the power limit, or lower the clocks"
        if electric
        else "cool it, or lower its clocks or power mode",
        size=heat or 0.0,
        covers=_beginning(row, "throttled: "),
    )


def _unstable(at: Measurement, row: Row, report: Report) -> Iterator[Finding]:
    latency, lock = row.latency_ms, _can_lock(report)
    if latency is not None and not latency.stable:
        known, percent = latency.cv is not None, 100 * (latency.cv or 0.0)
        yield Finding(
            kind="unstable",
            at=at,
            # No exponents: with one it would be another finding than without.
            evidence=f"CV {percent:{'.3g' if percent < 999.5 else ',.0f'}} %, steady is at most "
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
        yield Finding(
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


def _busy(report: Report) -> Iterator[Finding]:
    environment = report.environment
    load, cores = environment.load_average, environment.device.cores
    if load and cores and environment.recorded_from is None and load[0] > BUSY_LOAD * cores:
        yield Finding(
            kind="busy",
            at=None,
            evidence=f"load average {load[0]:.1f} on {cores} cores in the minute before",
            remedy="stop other programs, or wait until it is quiet",
        )


def _lambda_dependent(report: Report) -> Iterator[Finding]:
    for flat in report.lambda_flatness:
        spread, p_value = flat.max_relative_spread, flat.p_value
        if spread is None or p_value is None or spread <= FLAT_SPREAD or p_value >= FLAT_P_VALUE:
            continue
        rows = [
            row for row in report.rows if (row.artifact, row.batch) == (flat.artifact, flat.batch)
        ]
        yield Finding(
            kind="λ-dependent latency",
            at=(flat.artifact, flat.batch),
            evidence=f"medians of the λ differ by {100 * spread:.1f} % (p = {p_value:.3f})",
            remedy="λ only changes a tensor's contents: measure again on a quiet machine",
            size=spread,
            covers=tuple(t for row in rows for t in _beginning(row, "λ changes the latency")),
        )


def _masked(report: Report) -> Iterator[Finding]:
    """An int8 file that only resists the attack made on itself; a trouble of its RA."""
    for one in report.precisions:
        if one.masking is None or not one.masking.flagged:
            continue
        for at in measurements(report):
            if at[0] == one.artifact:
                yield Finding(
                    kind="masked gradients",
                    at=at,
                    evidence=f"λ={one.lam:g}: {one.masking.evidence}",
                    remedy="trust its RA under Square and the attack on fp32, not that under the "
                    "attack on int8",
                    size=-one.lam,
                )


def _beginning(row: Row, *starts: str) -> tuple[str, ...]:
    return tuple(text for text in row.warnings if text.startswith(starts))
