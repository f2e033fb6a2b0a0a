"""Who has its turn when: rounds A B C A B C …, so that a drift hits all configurations alike."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from oat_edge.bench.config import BenchConfig
from oat_edge.bench.latency import (
    NS,
    REWARM_CALLS,
    Clock,
    LatencySamples,
    Part,
    Progress,
    WarmUp,
)
from oat_edge.errors import OatEdgeError
from oat_edge.runtime.child import ChildFailedError

T = TypeVar("T")
Failure = OatEdgeError | ChildFailedError


class Source(Protocol):
    """One configuration that can be warmed up and have turns, wherever it runs."""

    name: str
    num_lambdas: int

    def warm_up(self) -> WarmUp:
        """Run until it is warm."""

    def part(self, first: int) -> Part:
        """Have a turn; `first` requests were recorded before."""


def take_turns(
    sources: Sequence[Source],
    config: BenchConfig,
    *,
    have: Mapping[str, Sequence[Part]] | None = None,
    keep: Callable[[str, int, Part], object] = lambda *_: None,
    failed: Callable[[str, Failure], object] | None = None,
    clock: Clock = time.perf_counter_ns,
    progress: Progress | None = None,
) -> dict[str, LatencySamples]:
    """Warm up every source, then record `config.rounds` interleaved rounds; samples by name.

    Each gets at least `config.min_seconds` and at least `config.min_iterations` requests.
    have: parts of an earlier run, by name, which are not repeated. keep: gets each new part with
    its round. failed: gets a source that raised, which then has no further turns and no samples;
    None: its error is raised.
    """
    start_ns = clock()
    parts = {source.name: list((have or {}).get(source.name, ())) for source in sources}
    warm: dict[str, WarmUp] = {}
    left = [source for source in sources if len(parts[source.name]) < config.rounds]
    out: set[str] = set()

    def attempt(source: Source, work: Callable[[], T], label: str) -> T | None:
        if source.name in out:
            return None
        if progress is not None:
            done_s = (clock() - start_ns) / NS
            todo = [one.name for one in left if one.name not in out]
            left_s = sum(_seconds_left(warm.get(name), len(parts[name]), config) for name in todo)
            progress(done_s, done_s + left_s, f"{label} {source.name}")
        try:
            return work()
        except (OatEdgeError, ChildFailedError) as error:
            if failed is None:
                raise
            out.add(source.name)
            failed(source.name, error)
            return None

    for source in left:
        warmed = attempt(source, source.warm_up, "warm-up")
        if warmed is not None:
            warm[source.name] = warmed
    for turn in range(config.rounds):
        for source in left:
            recorded = parts[source.name]
            if len(recorded) > turn:
                continue
            first = sum(len(one.latency_ns) for one in recorded)
            part = attempt(source, functools.partial(source.part, first), "latency")
            if part is not None:
                keep(source.name, turn, part)
                recorded.append(part)
    if progress is not None:
        done_s = (clock() - start_ns) / NS
        progress(done_s, done_s, "latency")
    return {
        source.name: LatencySamples.of(
            source.name,
            parts[source.name],
            [warm[source.name]] if source.name in warm else [],
            source.num_lambdas,
        )
        for source in sources
        if len(parts[source.name]) >= config.rounds
    }


def _seconds_left(warm: WarmUp | None, num_parts: int, config: BenchConfig) -> float:
    """Of one source: from its warm-up if that is done, else as if it were short and fast."""
    median_s = 0.0 if warm is None else warm.median_s
    per_round_s = max(config.min_seconds, config.min_iterations * median_s) / config.rounds
    per_round_s += max(config.rewarm_s, REWARM_CALLS * median_s)
    warm_s = 2 * config.warmup_min_s if warm is None else 0.0
    return warm_s + (config.rounds - num_parts) * per_round_s
