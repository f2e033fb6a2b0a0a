"""The measuring of a bench: cell after cell, each finished one kept in results.jsonl."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from oat_edge.bench import schema
from oat_edge.bench.accuracy import accuracy_seconds
from oat_edge.bench.cells import Cell, Opener, in_short, plan, seconds
from oat_edge.bench.config import BenchConfig
from oat_edge.bench.latency import LatencySamples, Progress
from oat_edge.bench.memory import measure_memory
from oat_edge.bench.progress import Stages
from oat_edge.bench.results import Results
from oat_edge.bench.side_by_side import LATENCY, THROUGHPUT, SideBySide, measured, parts_of
from oat_edge.bench.turns import Failure
from oat_edge.bundle import Artifact, Bundle
from oat_edge.device.monitor import Monitor
from oat_edge.errors import BuildError, OatEdgeError, UnstableError
from oat_edge.evaluation.pack_set import PackSet
from oat_edge.runtime.child import ChildFailedError
from oat_edge.runtime.engines import Say
from oat_edge.runtime.worker import ChildSilentError, Worker

# A builder that tries kernels says nothing for minutes, and may wait for another one.
BUILD_SILENCE_S = 3600.0


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
        kinds = {kind: [cell for cell in cells if cell.kind in names] for kind, names in KINDS}
        stages = Stages(self.progress, [self._guess_s(cells) for cells in kinds.values()])
        if self.results.last("idle") is None:
            state = self.monitor.idle(self.config.idle_seconds if self.monitor.source else 0.0)
            self.results.add({"kind": "idle", "state": schema.dump(state)})
        self._engines(kinds["engine"], stages.begin("engine"))
        self._latency(kinds["latency"], stages.begin("latency"))
        accuracy_s = self._accuracy_s(kinds["accuracy"])
        stages.expect([accuracy_s, *(self._guess_s(kinds[kind]) for kind in ("memory", "layers"))])
        self._accuracy(kinds["accuracy"], stages.begin("accuracy"))
        stages.begin("memory")
        for cell in kinds["memory"]:
            self._once(cell, functools.partial(self._memory_of, cell))
        self._layers(kinds["layers"], stages.begin("layers"))
        stages.finish()

    def _engines(self, cells: Sequence[Cell], _: Progress) -> None:
        """First of all, and one by one: a builder wants the device for itself."""
        for cell in cells:
            try:
                with self.opener.start(cell, "engine") as worker:
                    worker.ask(
                        {"do": "build"},
                        silence_s=max(self.config.timeout_s, BUILD_SILENCE_S),
                        event=lambda told: self.say(*told),
                    )
            except ChildFailedError as error:
                raise BuildError(
                    f"building {cell.artifact.file} failed: {' '.join(str(error).split())}; close "
                    "what else uses memory, or export with a smaller --batch or --workspace-mb"
                ) from error

    def _latency(self, cells: Sequence[Cell], progress: Progress) -> None:
        """Latency in turns, and throughput of the same processes."""
        left = [cell for cell in cells if not self._measured(cell)]
        errors: dict[str, Failure] = {}
        run = SideBySide(self.config, self.opener, self.results, self.monitor, errors, progress)
        group = left
        while group:
            group = run.measure(group)
            if group:
                self.results.add({"kind": "split", "cells": [cell.name for cell in group]})
        # What was lost beside the others has a second try alone: then memory is as free as can be.
        lost = [cell for cell in left if _worth_a_second_try(errors.get(cell.name))]
        if len({cell.where for cell in left}) > 1:
            for cell in lost:
                if cell.name not in errors:
                    continue  # its latency had its second try, and this with it
                self.say(f"{cell.name}: {in_short(errors.pop(cell.name))}; once more, alone")
                run.measure([one for one in left if one.where == cell.where], alone=True)
        self.failures |= {name: in_short(error) for name, error in errors.items()}
        if errors and not any(self._measured(cell) for cell in cells if cell.kind == LATENCY):
            error = next(iter(errors.values()))
            raise error if isinstance(error, OatEdgeError) else UnstableError(in_short(error))

    def _accuracy(self, cells: Sequence[Cell], progress: Progress) -> None:
        def outcomes(cell: Cell, worker: Worker) -> dict[str, Any]:
            pinned = cell.artifact.pinned_lambda
            question = {
                "do": "outcomes",
                "lambdas": list(self.lambdas) if pinned is None else [pinned],
                "label": cell.name,
            }
            silence_s = self.config.timeout_s
            found = worker.ask(question, silence_s=silence_s, event=lambda told: progress(*told))
            return {"outcomes": found}

        self._each(cells, "accuracy", outcomes)

    def _layers(self, cells: Sequence[Cell], _: Progress) -> None:
        def profiles(_: Cell, worker: Worker) -> dict[str, Any]:
            return {"profiles": worker.ask({"do": "profiles"}, silence_s=self.config.timeout_s)}

        self._each(cells, "layers", profiles)

    def _each(
        self, cells: Sequence[Cell], opener: str, work: Callable[[Cell, Worker], dict[str, Any]]
    ) -> None:
        """One after the other what is not in the results yet, each in its process."""
        left = [cell for cell in cells if not self._measured(cell)]
        with closing(self.opener.start_all(left, opener)) as starting:
            for cell, worker in starting:
                with worker:
                    self._once(cell, functools.partial(work, cell, worker))

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

    def _once(self, cell: Cell, work: Callable[[], dict[str, Any]]) -> None:
        """Do what is not in the results yet, and keep it there; a failure costs this cell."""
        if self._measured(cell):
            return
        try:
            found = work()
        except (OatEdgeError, ChildFailedError) as error:
            self.failures[cell.name] = in_short(error)
        else:
            self.results.add({"kind": cell.kind, **cell.place, **found})

    def _measured(self, cell: Cell) -> bool:
        return measured(self.results, cell, self.config)

    def _guess_s(self, cells: Sequence[Cell]) -> float:
        return sum(seconds(cell, self.config) for cell in cells if not self._measured(cell))

    def _accuracy_s(self, cells: Sequence[Cell]) -> float:
        """From the latency that has just been measured."""
        total_s = self._guess_s(cells)
        for cell in cells:
            if self._measured(cell) or self.packs is None:
                continue
            batch = self.config.batches[-1]
            parts = parts_of(self.results, cell.artifact.file, batch)
            if parts:
                per_image_s = LatencySamples.of("", parts, (), 1).latency_ns.mean() / 1e9 / batch
                pinned = cell.artifact.pinned_lambda
                lambdas = self.lambdas if pinned is None else (pinned,)
                total_s += accuracy_seconds(
                    float(per_image_s), self.packs, cell.artifact.width, lambdas, self.config
                )
        return total_s


# Stages and the cells that each measures, in their order.
KINDS = (
    ("engine", ("engine",)),
    ("latency", (LATENCY, THROUGHPUT)),
    ("accuracy", ("accuracy",)),
    ("memory", ("memory",)),
    ("layers", ("layers",)),
)


def _worth_a_second_try(error: Failure | None) -> bool:
    return error is not None and not isinstance(error, ChildSilentError)
