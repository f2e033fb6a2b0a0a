"""The measuring of a bench: cell after cell, each finished one kept in results.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from oat_edge.bench import schema
from oat_edge.bench.accuracy import accuracy_seconds
from oat_edge.bench.cells import Cell, LatencyCell, Opener, in_short, plan, seconds
from oat_edge.bench.config import BenchConfig
from oat_edge.bench.latency import LatencySamples, Part, Progress
from oat_edge.bench.memory import measure_memory
from oat_edge.bench.progress import Stages
from oat_edge.bench.records import part_from_json, part_to_json, warm_up_to_json
from oat_edge.bench.results import Results
from oat_edge.bench.room import Room
from oat_edge.bench.turns import Failure, take_turns
from oat_edge.bundle import Artifact, Bundle
from oat_edge.device.monitor import Monitor
from oat_edge.device.system import System
from oat_edge.errors import BuildError, FallbackError, InputError, OatEdgeError, UnstableError
from oat_edge.evaluation.pack_set import PackSet
from oat_edge.runtime.child import ChildFailedError
from oat_edge.runtime.engines import Say
from oat_edge.runtime.worker import ChildSilentError

# These mean the same for every cell of a file, and no cell can mend them: the bench ends.
FINAL = (InputError, FallbackError, BuildError)


@dataclass(kw_only=True, slots=True)
class Measuring:
    """One run over all cells that `results` does not hold yet.

    Afterwards `results` holds everything that was measured, and `failures` why something was not.
    """

    bundle: Bundle
    artifacts: Sequence[Artifact]
    packs: PackSet | None
    lambdas: Sequence[float]
    config: BenchConfig
    opener: Opener
    results: Results
    monitor: Monitor
    progress: Progress | None
    say: Say
    failures: dict[str, str] = field(default_factory=dict)
    """By the cell's name."""

    def run(self) -> None:
        """Measure. Raises `OatEdgeError` for what no cell can mend, or if no cell was measured."""
        cells = plan(self.artifacts, self.config, with_packs=self.packs is not None)
        kinds = {kind: [cell for cell in cells if cell.kind == kind] for kind in _WORK}
        stages = Stages(self.progress, [self._guess_s(cells) for cells in kinds.values()])
        if self.results.last("idle") is None:
            state = self.monitor.idle(self.config.idle_seconds if self.monitor.source else 0.0)
            self.results.add({"kind": "idle", "state": schema.dump(state)})
        for kind, work in _WORK.items():
            work(self, kinds[kind], stages.begin(kind))
            if kind == "latency" and (guess_s := self._accuracy_s(kinds["accuracy"])):
                stages.expect([guess_s, *map(self._guess_s, (kinds["memory"], kinds["layers"]))])
        stages.finish()

    def _engines(self, cells: Sequence[Cell], _: Progress) -> None:
        """First of all, and one by one: a builder wants the device for itself."""
        for cell in cells:
            self.opener.ask_once(cell, "engine", {"do": "build"}, lambda told: self.say(*told))

    def _latency(self, cells: Sequence[Cell], progress: Progress) -> None:
        """Latency in turns, and throughput of the same processes."""
        left = [cell for cell in cells if not self._measured(cell)]
        errors: dict[str, Failure] = {}
        group = left
        while group:
            group = self._side_by_side(group, errors, progress)
            if group:
                self.results.add({"kind": "split", "cells": [cell.name for cell in group]})
        # What was lost beside the others has a second try alone: then memory is as free as can be.
        lost = [cell for cell in left if _worth_a_second_try(errors.get(cell.name))]
        if len(left) > 1:
            for cell in lost:
                self.say(f"{cell.name}: {in_short(errors[cell.name])}; once more, alone")
                before = errors.pop(cell.name)
                self._side_by_side([cell], errors, progress)
                if cell.name not in errors:
                    self.results.add({"kind": "alone", "why": in_short(before), **_where(cell)})
        self.failures |= {name: in_short(error) for name, error in errors.items()}
        if errors and not any(self._measured(cell) for cell in cells):
            error = next(iter(errors.values()))
            raise error if isinstance(error, OatEdgeError) else UnstableError(in_short(error))

    def _side_by_side(
        self, cells: Sequence[Cell], errors: dict[str, Failure], progress: Progress
    ) -> list[Cell]:
        """Measure these in turns; returns those that memory does not hold beside the others.

        errors: gets those that failed, by the cell's name.
        """
        by_name: dict[str, LatencyCell] = {}
        left: list[Cell] = []
        room = Room(System())
        with ExitStack() as stack:
            for cell in cells:
                if left or not room.for_another():
                    left.append(cell)
                    continue
                try:
                    opened = LatencyCell(cell, self.opener)
                except FINAL:
                    raise
                except (OatEdgeError, ChildFailedError) as error:
                    errors[cell.name] = error
                    continue
                stack.callback(opened.close)
                by_name[opened.name] = opened
                room.opened()
            take_turns(
                [_Kept(opened, self.results) for opened in by_name.values()],
                self.config,
                have={name: self._parts(opened.cell) for name, opened in by_name.items()},
                keep=lambda name, turn, part: self._keep(by_name[name].cell, turn, part),
                failed=lambda name, error: errors.update({by_name[name].cell.name: error}),
                progress=progress,
            )
            for opened in by_name.values():
                if opened.cell.name not in errors:
                    self._throughput(opened, errors)
        return left

    def _throughput(self, opened: LatencyCell, errors: dict[str, Failure]) -> None:
        cell = opened.cell
        try:
            found = opened.throughput()
            # Remarks come with the requests: what went before may not have known them.
            self.results.add({"kind": "facts", **_where(cell), **opened.facts()})
            self.results.add({"kind": "throughput", **_where(cell), **found})
        except (OatEdgeError, ChildFailedError) as error:
            errors[cell.name] = error

    def _keep(self, cell: Cell, turn: int, part: Part) -> None:
        state = self.monitor.span(part.start_ns, part.end_ns)
        self.results.add(
            {
                "kind": "part",
                **_where(cell),
                "round": turn,
                "state": schema.dump(state),
                **part_to_json(part),
            }
        )

    def _accuracy(self, cells: Sequence[Cell], progress: Progress) -> None:
        for cell in cells:
            pinned = cell.artifact.pinned_lambda
            question = {
                "do": "outcomes",
                "lambdas": list(self.lambdas) if pinned is None else [pinned],
                "label": cell.name,
            }
            self._once(
                cell,
                lambda cell=cell, question=question: {  # type: ignore[misc]
                    "outcomes": self.opener.ask_once(
                        cell, "accuracy", question, lambda told: progress(*told)
                    )
                },
            )

    def _memory(self, cells: Sequence[Cell], _: Progress) -> None:
        for cell in cells:
            self._once(cell, lambda cell=cell: self._memory_of(cell))  # type: ignore[misc]

    def _memory_of(self, cell: Cell) -> dict[str, Any]:
        assert cell.batch is not None
        cost = measure_memory(
            self.bundle,
            cell.artifact,
            batches=(cell.batch,),
            threads=self.config.threads,
            device=self.config.runner_device,
            cuda_graph=self.config.cuda_graph,
            timeout_s=self.config.timeout_s,
        )
        return {
            "added_mb": cost.added_mb[cell.batch],
            "reason": cost.reason,
            "gpu_added_mb": (cost.gpu_added_mb or {}).get(cell.batch),
            "gpu_reason": cost.gpu_reason,
        }

    def _layers(self, cells: Sequence[Cell], _: Progress) -> None:
        for cell in cells:
            self._once(
                cell,
                lambda cell=cell: {  # type: ignore[misc]
                    "profiles": self.opener.ask_once(cell, "layers", {"do": "profiles"})
                },
            )

    def _once(self, cell: Cell, work: Callable[[], dict[str, Any]]) -> None:
        """Do what is not in the results yet, and keep it there; a failure costs this cell."""
        if self._measured(cell):
            return
        try:
            self.results.add({"kind": cell.kind, **_where(cell), **work()})
        except (OatEdgeError, ChildFailedError) as error:
            self.failures[cell.name] = in_short(error)

    def _measured(self, cell: Cell) -> bool:
        return measured(self.results, cell, self.config)

    def _parts(self, cell: Cell) -> list[Part]:
        return parts_of(self.results, cell.artifact.file, cell.batch)

    def _guess_s(self, cells: Sequence[Cell]) -> float:
        return sum(seconds(cell, self.config) for cell in cells if not self._measured(cell))

    def _accuracy_s(self, cells: Sequence[Cell]) -> float:
        """From the latency that has just been measured."""
        total_s = 0.0
        for cell in cells:
            if self._measured(cell):
                continue
            batch = self.config.batches[-1]
            parts = self._parts(Cell("latency", cell.artifact, batch))
            if parts and self.packs is not None:
                samples = LatencySamples.of("", parts, (), 1)
                per_image_s = float(samples.latency_ns.mean()) / 1e9 / batch
                pinned = cell.artifact.pinned_lambda
                total_s += accuracy_seconds(
                    per_image_s,
                    self.packs,
                    cell.artifact.width,
                    self.lambdas if pinned is None else (pinned,),
                    self.config,
                )
        return total_s


class _Kept:
    """A source whose warm-ups are kept too: they say how sure its figures are."""

    def __init__(self, opened: LatencyCell, results: Results) -> None:
        self.name, self.num_lambdas = opened.name, opened.num_lambdas
        self.part = opened.part
        self._opened, self._results = opened, results

    def warm_up(self) -> Any:
        warm = self._opened.warm_up()
        where = _where(self._opened.cell)
        self._results.add({"kind": "warm_up", **where, **warm_up_to_json(warm)})
        return warm


_WORK: dict[str, Callable[[Measuring, Sequence[Cell], Progress], None]] = {
    "engine": Measuring._engines,
    "latency": Measuring._latency,
    "accuracy": Measuring._accuracy,
    "memory": Measuring._memory,
    "layers": Measuring._layers,
}


def measured(results: Results, cell: Cell, config: BenchConfig) -> bool:
    """Whether a cell is finished. (Whether an engine is there, only the device knows.)"""
    if cell.kind == "latency":
        num_parts = sum(1 for _ in results.of("part", **_where(cell)))
        there = results.last("throughput", **_where(cell)) is not None
        return there and num_parts >= config.rounds
    return results.last(cell.kind, **_where(cell)) is not None


def parts_of(results: Results, file: str, batch: int | None) -> list[Part]:
    """What was recorded of one file at one batch, in order."""
    return [part_from_json(one) for one in results.of("part", file=file, batch=batch)]


def _where(cell: Cell) -> dict[str, Any]:
    return {"file": cell.artifact.file, "batch": cell.batch}


def _worth_a_second_try(error: Failure | None) -> bool:
    return error is not None and not isinstance(error, ChildSilentError)
