"""Cells: what a bench measures one by one, each in a process of its own.

A CUDA error, a crash or the end of memory costs the cell that it meets, not the bench. Latency
cells live side by side, because they take turns; the others come and go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from oat_edge.bench.config import BenchConfig
from oat_edge.bench.latency import Part, WarmUp
from oat_edge.bench.records import part_from_json, warm_up_from_json
from oat_edge.bundle import Artifact, Bundle
from oat_edge.runtime.artifacts import ENGINES
from oat_edge.runtime.child import ChildFailedError
from oat_edge.runtime.worker import Worker

Kind = Literal["engine", "latency", "throughput", "accuracy", "memory", "layers"]
LATENCY: Literal["latency"] = "latency"
THROUGHPUT: Literal["throughput"] = "throughput"
PROCESS = "oat_edge.bench.cell_process"
# Processes that are started before their turn.
AHEAD = 2
# Only for estimates of the time left: what starting a process and opening a file costs.
OPEN_GUESS_S = 1.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to measure of one file."""

    kind: Kind
    artifact: Artifact
    batch: int | None = None
    """None: it has no batch, or all of them."""

    @property
    def name(self) -> str:
        """E.g. "latency w0.50-fp32.onnx batch 16"."""
        batch = "" if self.batch is None else f" batch {self.batch}"
        return f"{self.kind} {self.artifact.file}{batch}"

    @property
    def where(self) -> tuple[str, int | None]:
        """File and batch."""
        return self.artifact.file, self.batch

    @property
    def place(self) -> dict[str, Any]:
        """The same, as records have it."""
        return {"file": self.artifact.file, "batch": self.batch}


def plan(
    artifacts: Sequence[Artifact], config: BenchConfig, *, with_packs: bool
) -> tuple[Cell, ...]:
    """All cells. Latency and throughput of a file and batch share a process."""
    pairs = [(artifact, batch) for artifact in artifacts for batch in config.batches]
    knobs = [artifact for artifact in artifacts if artifact.pinned_lambda is None]
    return (
        *(Cell("engine", artifact) for artifact in artifacts if artifact.format in ENGINES),
        *(Cell(kind, *pair) for pair in pairs for kind in (LATENCY, THROUGHPUT)),
        *(Cell("accuracy", artifact) for artifact in artifacts if with_packs),
        *(Cell("memory", artifact, batch) for artifact, batch in pairs),
        *(Cell("layers", artifact) for artifact in knobs if config.profile),
    )


def seconds(cell: Cell, config: BenchConfig) -> float:
    """About how long a cell takes, as far as that is known beforehand."""
    if cell.kind == LATENCY:
        warm_s = 2 * config.warmup_min_s + config.rounds * config.rewarm_s
        return OPEN_GUESS_S + warm_s + config.min_seconds
    if cell.kind == THROUGHPUT:  # in the process of the latency
        return config.warmup_min_s + config.throughput_seconds
    return OPEN_GUESS_S


@dataclass(frozen=True, slots=True)
class Opener:
    """Starts the processes of one bench's cells."""

    bundle: Bundle
    config: BenchConfig
    images: Path
    """.npz of the images of a request, by batch."""

    def start(self, cell: Cell, opener: str) -> Worker:
        """A process in which `opener` of `cell_process` runs, told what it is to open."""
        changes = {} if cell.batch is None else {"batches": [cell.batch]}
        request = {
            "bundle": str(self.bundle.path),
            "file": cell.artifact.file,
            "images": str(self.images),
            "config": {**self.config.to_json(), **changes},
        }
        return Worker(f"{PROCESS}:{opener}", request)

    def start_all(
        self, cells: Sequence[Cell], opener: str
    ) -> Generator[tuple[Cell, Worker], None, None]:
        """A process for each cell, which the caller closes.

        While one is at work the next ones start: that takes as long as opening a small file, and
        nothing is timed meanwhile. Those that nobody took are closed at the end.
        """
        coming = deque(cells)
        started: deque[tuple[Cell, Worker]] = deque()
        try:
            while coming or started:
                while coming and len(started) < AHEAD:
                    cell = coming.popleft()
                    started.append((cell, self.start(cell, opener)))
                yield started.popleft()
        finally:
            for _, worker in started:
                worker.close()


class LatencyCell:
    """A cell's process for latency and throughput: a `turns.Source`, and what else it can tell.

    Raises what opening raises.
    """

    def __init__(self, cell: Cell, worker: Worker, config: BenchConfig) -> None:
        self.cell = cell
        self.name = f"{cell.artifact.file} batch {cell.batch}"
        self._config = config
        self._silence_s = config.timeout_s
        self._worker = worker
        try:
            self.facts = self.ask_facts()
        except BaseException:
            self.close()
            raise
        self.num_lambdas: int = self.facts["num_lambdas"]

    def ask_facts(self) -> dict[str, Any]:
        """Back end, precision, versions, remarks, nodes."""
        found: dict[str, Any] = self._ask({"do": "facts"})
        return found

    def warm_up(self) -> WarmUp:
        """Run until it is warm."""
        warm = warm_up_from_json(self._ask({"do": "warm_up"}))
        # A turn tells nothing until it is over, which would disturb it: what it needs is allowed.
        turn_s = self._config.min_iterations / self._config.rounds * warm.median_s
        turn_s = max(turn_s, self._config.min_seconds / self._config.rounds, self._config.rewarm_s)
        self._silence_s = self._config.timeout_s + 5 * turn_s
        return warm

    def part(self, first: int) -> Part:
        """Have a turn."""
        return part_from_json(self._ask({"do": "part", "first": first}))

    def throughput(self) -> dict[str, Any]:
        """Images per second, and remarks."""
        found: dict[str, Any] = self._ask({"do": "throughput"})
        return found

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def _ask(self, question: dict[str, Any]) -> Any:
        return self._worker.ask(question, silence_s=self._silence_s)


def in_short(error: Exception) -> str:
    """Why a cell failed, in one line."""
    text = " ".join(str(error).split())
    return text if not isinstance(error, ChildFailedError) else f"measuring failed: {text}"
