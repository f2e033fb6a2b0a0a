"""What keeps a GPU waiting: copies that take longer than computing, and the host that starts it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from oat_edge.bench.finding import Finding, Measurement
from oat_edge.bench.report import Row
from oat_edge.bench.table import figures

# trtexec calls a run enqueue-bound if the host takes longer than this share of the compute time to
# start it. With one request in flight the host's own part is what its latency has beyond the
# device's events: made ready and started before them, noticed after them. Without a CUDA graph the
# device also waits within `compute`, so that less of it is seen than there is.
ENQUEUE_BOUND = 0.8
# Remarks of runners; those that only throughput mode made begin so.
THROUGHPUT = "throughput_ips: "
GRAPH = re.compile(rf"(?:{THROUGHPUT})?cuda_graph: (?!off)(.*)")
NO_GRAPH = "cuda_graph: off"


def transfer_bound(at: Measurement, row: Row) -> Iterator[Finding]:
    """Images or logits take longer on their way than the network to compute."""
    if row.device_ms is None:
        return
    compute = row.device_ms.compute.p50
    copies = {"in": row.device_ms.h2d.p50, "out": row.device_ms.d2h.p50}
    way = max(copies, key=copies.__getitem__)
    if copies[way] >= compute:
        took, computed = figures(copies[way]), figures(compute)
        yield Finding(
            kind="transfer-bound",
            at=at,
            evidence=f"copying {way} takes {took} ms, computing {computed} ms (p50)",
            remedy="keep images on the device, or copy while it computes (img/s does)",
            size=copies[way] / compute if compute else float("inf"),
        )


def enqueue_bound(at: Measurement, row: Row) -> Iterator[Finding]:
    """The device waits for the host; or no CUDA graph, without which it may."""
    told = {
        text: match[1]
        for text in row.warnings
        if (match := GRAPH.match(text)) and _is_of(text, row.batch)
    }
    without = next((f"no CUDA graph{_mode(text)}: {why}" for text, why in told.items()), None)
    host, compute = _host_ms(row), 0.0 if row.device_ms is None else row.device_ms.compute.p50
    if host is not None and host >= ENQUEUE_BOUND * compute:
        evidence = f"the host takes {figures(host)} ms, computing {figures(compute)} ms (p50)"
        if without is None and NO_GRAPH in row.warnings:
            without, told = "no CUDA graph: --no-cuda-graph", {NO_GRAPH: ""}
        yield Finding(
            kind="enqueue-bound",
            at=at,
            evidence=f"{evidence}; {without}" if without else evidence,
            remedy="a CUDA graph, or larger batches" if without else "larger batches",
            size=host / compute if compute else float("inf"),
            covers=tuple(told),
        )
    elif without:
        yield Finding(
            kind="enqueue-bound",
            at=at,
            evidence=f"perhaps, {without}",
            remedy="remove what is in its way, or take larger batches",
            covers=tuple(told),
        )


def _mode(remark: str) -> str:
    """Latency mode goes without saying."""
    return " for img/s" if remark.startswith(THROUGHPUT) else ""


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
