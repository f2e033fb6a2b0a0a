"""Side-by-side timing: candidates take turns, so that drift and noise hit all alike."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from oat_edge.bench.environment import collect
from oat_edge.bench.latency import gc_paused
from oat_edge.files import write_json
from oat_edge.network_spec import NetworkSpec

RESULTS = Path(__file__).parent / "results"
console = Console(width=100, highlight=False)


def small_image_spec(arch: str) -> NetworkSpec:
    """Ten classes of 32x32 colour images, as in the papers, with all else as it is by default."""
    return NetworkSpec(
        arch=arch, class_names=tuple("0123456789"), image_shape=(3, 32, 32), eps=8 / 255
    )


def interleaved(
    candidates: dict[str, Callable[[], object]], *, rounds: int, calls: int = 1
) -> dict[str, list[float]]:
    """Milliseconds of every call, by candidate.

    A round gives each candidate one unrecorded call (its caches were emptied by the others) and
    then `calls` timed ones; the order turns from round to round.
    """
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    with gc_paused():
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                call = candidates[name]
                call()
                for _ in range(calls):
                    start = time.perf_counter()
                    call()
                    samples[name].append((time.perf_counter() - start) * 1e3)
    return samples


def ratio(samples: dict[str, list[float]], over: str, under: str, *, calls: int) -> dict[str, Any]:
    """Ratio of medians, and the quartiles of the ratio of each round's medians."""
    per_round = [
        statistics.median(samples[over][i : i + calls])
        / statistics.median(samples[under][i : i + calls])
        for i in range(0, len(samples[over]), calls)
    ]
    low, _, high = statistics.quantiles(per_round, n=4)
    return {
        "ratio": statistics.median(samples[over]) / statistics.median(samples[under]),
        "ratio_per_round_median": statistics.median(per_round),
        "ratio_per_round_quartiles": [low, high],
        "over": over,
        "under": under,
        "num_rounds": len(per_round),
    }


def save(name: str, value: dict[str, Any], *, device: str = "cpu") -> None:
    """Write benchmarks/results/NAME.json with the environment it was measured in."""
    path = RESULTS / f"{name}.json"
    write_json(path, {"environment": dataclasses.asdict(collect(device=device)), **value})
    console.print(f"saved: benchmarks/results/{path.name}", markup=False)
