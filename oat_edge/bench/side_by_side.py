"""Latency cells side by side: each in its process, all of them open, one at work at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from oat_edge.bench import schema
from oat_edge.bench.cells import LATENCY, THROUGHPUT, Cell, LatencyCell, Opener
from oat_edge.bench.config import BenchConfig
from oat_edge.bench.latency import Part, Progress, WarmUp
from oat_edge.bench.records import part_from_json, part_to_json, warm_up_to_json
from oat_edge.bench.results import Results
from oat_edge.bench.room import Room
from oat_edge.bench.turns import Failure, take_turns
from oat_edge.device.monitor import Monitor
from oat_edge.device.system import System
from oat_edge.errors import BuildError, FallbackError, InputError, OatEdgeError
from oat_edge.runtime.child import ChildFailedError

__all__ = ["LATENCY", "THROUGHPUT", "SideBySide", "measured", "parts_of"]

# These mean the same for every cell of a file, and no cell can mend them: the bench ends.
FINAL = (InputError, FallbackError, BuildError)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Measures groups of latency and throughput cells, which share a process per (file, batch)."""

    config: BenchConfig
    opener: Opener
    results: Results
    monitor: Monitor
    errors: dict[str, Failure]
    """Gets what failed, by the cell's name."""
    progress: Progress

    def measure(self, cells: Sequence[Cell], *, alone: bool = False) -> list[Cell]:
        """Measure these in turns; returns those that memory does not hold beside the others.

        alone: noted with what is recorded. Raises what no cell can mend.
        """
        todo = {cell.where: [one for one in cells if one.where == cell.where] for cell in cells}
        with ExitStack() as stack:
            opened, left = self._open([group[0] for group in todo.values()], stack)
            turns = [one for one in opened if one.cell.kind == LATENCY]
            names = {one.name: one for one in turns}
            num_before = len(self.results.records)
            take_turns(
                [_Kept(one, self.results) for one in turns],
                self.config,
                have={one.name: parts_of(self.results, *one.cell.where) for one in turns},
                keep=lambda name, turn, part: self._keep(names[name].cell, turn, part),
                failed=lambda name, error: self._fail(names[name].cell, error),
                progress=self.progress,
            )
            new = self.results.records[num_before:]
            if alone and any(record["kind"] == "part" for record in new):
                self.results.add({"kind": "alone", **cells[0].place})
            for one in opened:
                for cell in todo[one.cell.where]:
                    if cell.kind == THROUGHPUT and one.cell.name not in self.errors:
                        self._throughput(one, cell)
        return [cell for first in left for cell in todo[first.where]]

    def _open(
        self, cells: Sequence[Cell], stack: ExitStack
    ) -> tuple[list[LatencyCell], list[Cell]]:
        """As many as memory holds, and the others. A width stays together as far as it can."""
        opened: list[LatencyCell] = []
        room = Room(System())
        starting = stack.enter_context(closing(self.opener.start_all(cells, "network")))
        for index, (cell, worker) in enumerate(starting):
            stack.callback(worker.close)
            if not room.for_another():
                starting.close()
                left = list(cells[index:])
                width = cell.artifact.width
                parted = [one for one in opened if one.cell.artifact.width == width]
                if len(parted) < len(opened):
                    for one in parted:
                        one.close()
                    left = [*(one.cell for one in parted), *left]
                    opened = opened[: len(opened) - len(parted)]
                return opened, left
            try:
                one = LatencyCell(cell, worker, self.config)
            except FINAL:
                raise
            except (OatEdgeError, ChildFailedError) as error:
                self._fail(cell, error)
                continue
            self.results.add({"kind": "facts", **cell.place, **one.facts})
            opened.append(one)
            room.opened()
        return opened, []

    def _fail(self, cell: Cell, error: Failure) -> None:
        if isinstance(error, FINAL):
            raise error
        self.errors[cell.name] = error

    def _keep(self, cell: Cell, turn: int, part: Part) -> None:
        state = self.monitor.span(part.start_ns, part.end_ns)
        self.results.add(
            {
                "kind": "part",
                **cell.place,
                "round": turn,
                "state": schema.dump(state),
                **part_to_json(part),
            }
        )

    def _throughput(self, one: LatencyCell, cell: Cell) -> None:
        try:
            found = one.throughput()
            # Remarks come with the requests: what went before may not have known them.
            facts = one.ask_facts()
        except (OatEdgeError, ChildFailedError) as error:
            self._fail(cell, error)
            return
        self.results.add({"kind": "facts", **cell.place, **facts})
        self.results.add({"kind": THROUGHPUT, **cell.place, **found})


class _Kept:
    """A source whose warm-ups are kept too: they say how sure its figures are."""

    def __init__(self, opened: LatencyCell, results: Results) -> None:
        self.name, self.num_lambdas = opened.name, opened.num_lambdas
        self.part = opened.part
        self._opened, self._results = opened, results

    def warm_up(self) -> WarmUp:
        warm = self._opened.warm_up()
        self._results.add({"kind": "warm_up", **self._opened.cell.place, **warm_up_to_json(warm)})
        return warm


def measured(results: Results, cell: Cell, config: BenchConfig) -> bool:
    """Whether a cell is finished. (Whether an engine is there, only the device knows.)"""
    if cell.kind == LATENCY:
        return len(rounds_of(results, *cell.where)) >= config.rounds
    return results.last(cell.kind, **cell.place) is not None


def parts_of(results: Results, file: str, batch: int | None) -> list[Part]:
    """What was recorded of one file at one batch, in order."""
    return [part_from_json(one) for one in rounds_of(results, file, batch).values()]


def rounds_of(results: Results, file: str, batch: int | None) -> dict[int, dict[str, Any]]:
    """Records of parts by their round; of one that is there twice the first."""
    rounds: dict[int, dict[str, Any]] = {}
    for one in results.of("part", file=file, batch=batch):
        rounds.setdefault(one["round"], one)
    return rounds
