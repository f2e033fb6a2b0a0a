"""Policy against each fixed width on real engines, under load that comes and goes.

OMP_NUM_THREADS=1 python -m benchmarks.load --bundle bundles/latest --seconds 20

Requests arrive at random (Poisson), with a deadline that counts from their arrival; those that
cannot be served at once queue. In some phases they come in a burst, in some other processes
compete for the cores, in some half of them are attacked. Clean images for those that are not,
and the bundle's white-box images of the very point that is chosen for those that are; right or
wrong is told by the labels. All candidates choose λ by the same rule, so they differ in width
only. They take turns every quarter of a second, with the same arrivals, so drift hits all alike.
The bundle needs attack packs and its report (`oat-edge bench`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import common
from benchmarks.common import console, save
from benchmarks.load_plot import plot_load
from benchmarks.load_traffic import (
    PHASES,
    Load,
    Requests,
    Served,
    Traffic,
    competing,
    serve,
)
from oat_edge.bench.inputs import load_packs
from oat_edge.bench.latency import gc_paused
from oat_edge.bundle import Bundle
from oat_edge.runtime import open_artifact
from oat_edge.runtime.policy import Policy
from oat_edge.runtime.policy_figures import choose_files, load_report
from oat_edge.runtime.policy_rules import Chooser

POLICY = "policy"


def main() -> None:
    """Measure, print, save, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/latest"))
    parser.add_argument("--seconds", type=float, default=20.0, help="for each candidate")
    parser.add_argument("--batch", type=int, default=16, help="images of a request")
    parser.add_argument("--deadline", type=float, default=2.5, help="times the widest's median")
    parser.add_argument("--busy", type=int, default=2, help="competing processes per core")
    parser.add_argument("--slot", type=float, default=0.25, help="seconds of a turn")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    packs = load_packs(bundle, ())
    if packs is None:
        raise SystemExit("error: the bundle has no attack packs: oat-edge export")
    with ExitStack() as stack:
        candidates = open_candidates(bundle, stack)
        traffic = Traffic.of(packs)
        widest_ms = quiet_ms(list(candidates.values())[-1], traffic, arguments.batch)
        load = Load(
            batch=arguments.batch,
            widest_ms=widest_ms,
            deadline_ms=arguments.deadline * widest_ms,
            seed=arguments.seed,
            slot_s=arguments.slot,
        )
        num_slots = max(1, round(arguments.seconds / len(PHASES) / load.slot_s))
        served = run(candidates, traffic, load, num_slots, arguments.busy)
        hot_us = decision_us(bundle, load)
    summary = {name: summarise(requests) for name, requests in served.items()}
    phases = [
        {
            "phase": asdict(phase),
            **{n: summarise([s for s in r if s.phase == i]) for n, r in served.items()},
        }
        for i, phase in enumerate(PHASES)
    ]
    print_tables(summary, phases)
    deadline = f"deadline {load.deadline_ms:.1f} ms after arrival"
    console.print(
        f"{load.batch} images a request, {deadline}; to decide and learn: {hot_us:.0f} µs"
    )
    name = f"load-{bundle.spec.arch}"
    save(
        name,
        {
            "arguments": {**vars(arguments), "bundle": bundle.path.name},
            "network": {"arch": bundle.spec.arch, "image_shape": bundle.spec.image_shape},
            "load": asdict(load),
            "decision_us": hot_us,
            "summary": summary,
            "phases": phases,
        },
    )
    plot_load(served, PHASES, load.deadline_ms, common.RESULTS / f"{name}.png")


def open_candidates(bundle: Bundle, stack: ExitStack) -> dict[str, Policy]:
    """The policy over all widths, and one policy per width that has no other; on one thread."""
    candidates = {POLICY: stack.enter_context(Policy.open(bundle, threads=1))}
    report = load_report(bundle, None, "cpu")
    for artifact, figures in choose_files(bundle, report, device="cpu"):
        runner = open_artifact(bundle, artifact, threads=1)
        fixed = Policy({figures.width: runner}, Chooser([figures]))
        candidates[f"width {figures.width:g}"] = stack.enter_context(fixed)
    return candidates


def quiet_ms(widest: Policy, traffic: Traffic, batch: int) -> float:
    """Median latency of the widest network now."""
    images = np.resize(traffic.clean, (batch, *traffic.clean.shape[1:]))
    return statistics.median([widest.infer(images).latency_ms for _ in range(200)][20:])


def run(
    candidates: dict[str, Policy], traffic: Traffic, load: Load, num_slots: int, busy: int
) -> dict[str, list[Served]]:
    """All phases; within one, candidates take turns slot by slot."""
    served: dict[str, list[Served]] = {name: [] for name in candidates}
    names = list(candidates)
    with gc_paused():
        for i, phase in enumerate(PHASES):
            num_busy = busy * len(os.sched_getaffinity(0)) if phase.busy else 0
            with competing(num_busy):
                for slot in range(num_slots):
                    first = slot % len(names)
                    for name in names[first:] + names[:first]:
                        requests = Requests.drawn(load, phase, len(traffic.packs), (i, slot))
                        begin_s = (i * num_slots + slot) * load.slot_s
                        served[name] += serve(
                            candidates[name], traffic, requests, load.deadline_ms, i, begin_s
                        )
    return served


def decision_us(bundle: Bundle, load: Load, num: int = 5000) -> float:
    """What deciding and learning cost by themselves, in a row: no engine, warm caches."""
    files = choose_files(bundle, load_report(bundle, None, "cpu"), device="cpu")
    chooser = Chooser([figures for _, figures in files])
    start = time.perf_counter()
    for _ in range(num):
        choice = chooser.choose(deadline_ms=load.deadline_ms, threat=0.1, batch=load.batch)
        chooser.observe(choice, load.widest_ms)
    return (time.perf_counter() - start) / num * 1e6


def summarise(requests: list[Served]) -> dict[str, Any]:
    """Shares and milliseconds of these requests."""
    responses = [one.response_ms for one in requests]
    widths = [one.point.width for one in requests if one.reason != "probe"]
    return {
        "num_requests": len(requests),
        "met": share([one.met for one in requests]),
        "right": share([one.right for one in requests]),
        "right_in_time": share([one.right * one.met for one in requests]),
        "response_ms": {f"p{q}": float(np.percentile(responses, q)) for q in (50, 95, 99)},
        "width_shares": {f"{w:g}": share([w == one for one in widths]) for w in sorted({*widths})},
        "switches": int(np.count_nonzero(np.diff(widths))),
        "probes": sum(one.reason == "probe" for one in requests),
        "overhead_us_p50": statistics.median(one.overhead_us for one in requests),
    }


def share(values: Sequence[float]) -> float:
    """Mean of shares, or of what is true."""
    return float(np.mean(values))


def print_tables(summary: dict[str, Any], phases: list[dict[str, Any]]) -> None:
    """All candidates over the whole test, then what was right in time by phase."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "in time %", "right %", "right in time %", "p50 ms", "p95 ms", "p99 ms",
                  "switches", "probes", "overhead µs"):  # fmt: skip
        table.add_column(title, justify="right" if title else "left")
    for name, one in summary.items():
        shares = [f"{100 * one[key]:.1f}" for key in ("met", "right", "right_in_time")]
        times = [f"{ms:.2f}" for ms in one["response_ms"].values()]
        counts = [str(one["switches"]), str(one["probes"]), f"{one['overhead_us_p50']:.0f}"]
        table.add_row(name, *shares, *times, *counts)
    console.print(table)
    table = Table(box=None, pad_edge=False, title="right in time % (in time %), by phase")
    for title in ("", *summary):
        table.add_column(title, justify="right" if title else "left")
    for one in phases:
        cells = [
            f"{100 * one[n]['right_in_time']:.1f} ({100 * one[n]['met']:.0f})" for n in summary
        ]
        table.add_row(one["phase"]["name"], *cells)
    console.print(table)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
