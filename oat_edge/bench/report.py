"""The bench report: schema oat-edge/bench/1 (DESIGN, section 5), and its files.

A figure that could not be had is None, with a reason among the warnings of its row or report.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from oat_edge.bench import schema
from oat_edge.bench.environment import Environment
from oat_edge.bench.latency import LatencySamples
from oat_edge.bench.profile import ArtifactProfile
from oat_edge.bench.statistics import DeviceMs, LatencyMs
from oat_edge.device.state import MonitorFacts, Power, SpanState, State
from oat_edge.errors import InputError
from oat_edge.evaluation.pack_set import WORST
from oat_edge.evaluation.precisions import PrecisionDrop
from oat_edge.evaluation.transfer import TransferGrid
from oat_edge.files import atomic_path, read_json, write_json

SCHEMA = "oat-edge/bench/1"
REMEDY = "measure again with `oat-edge bench`"
NOT_SAVED = "samples_file: the raw samples were not saved"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One (artifact, λ, batch). Rows that differ in λ only share all but their accuracy."""

    artifact: str
    sha256: str
    format: str
    backend: str
    width: float
    lam: float
    precision: str
    batch: int
    latency_ms: LatencyMs | None
    """Of one request, that is of `batch` images, one in flight. None: its measurement failed."""
    throughput_ips: float | None
    """Images per second with all cores busy, or several requests in flight on a GPU (throughput
    mode)."""
    memory_mb: float | None
    """Resident memory (10^6 bytes) that opening and running the artifact adds to a process."""
    energy_mj: float | None
    """Millijoule per image with one request in flight, all that `power.scope` draws."""
    standard_accuracy: float | None
    robust_accuracy: dict[str, float | None]
    """By attack; "transfer": under what was crafted at other operating points; "worst": worst
    case over all of these, of images that are right clean. None: see the warnings."""
    num_samples: int | None
    """Images behind the accuracies."""
    pareto: bool | None
    """On the front of latency, worst-case and standard accuracy among the rows of its batch."""
    status: Literal["ok", "unstable", "failed"]
    warnings: tuple[str, ...]
    device_ms: DeviceMs | None = None
    """Parts of the same requests as `latency_ms`, on the clock of the GPU."""
    gpu_memory_mb: float | None = None
    """Memory of the GPU (10^6 bytes) that opening and running the artifact takes."""
    power: Power | None = None
    """What was drawn while the latency was measured, and how that is known."""
    state: State | None = None
    """Clock, temperature and throttling while the latency was measured."""

    def __post_init__(self) -> None:
        shares = {"standard_accuracy": self.standard_accuracy, **self.robust_accuracy}
        for name, share in shares.items():
            if share is not None and not 0.0 <= share <= 1.0:
                raise InputError(f"{self.artifact}: {name} is {share}, expected [0, 1]: {REMEDY}")
        n = 1 if self.latency_ms is None else self.latency_ms.n
        if self.batch < 1 or n < 1 or WORST not in self.robust_accuracy:
            raise InputError(f"{self.artifact}: batch, n or the worst case is missing: {REMEDY}")
        if (self.latency_ms is None) != (self.status == "failed"):
            raise InputError(f"{self.artifact}: is {self.status}, its latency says else: {REMEDY}")

    @property
    def kind(self) -> tuple[str, str]:
        """Format and precision."""
        return self.format, self.precision

    @property
    def worst(self) -> float | None:
        """Worst-case robust accuracy."""
        return self.robust_accuracy[WORST]


@dataclass(frozen=True, kw_only=True, slots=True)
class LambdaCost:
    """What the λ input costs: latency of the λ-input file over that of a pinned one."""

    width: float
    batch: int
    artifact: str | None
    pinned_artifact: str | None
    pinned_lambda: float | None
    lambda_input_p50_ms: float | None
    pinned_p50_ms: float | None
    ratio: float | None
    reason: str | None
    """Why the ratio is None."""
    format: str | None = None
    """Of both files; None in reports from before there were several."""
    precision: str | None = None
    """Of both files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LambdaFlatness:
    """Whether λ changes the latency of a λ-input file, tested on the recorded samples."""

    artifact: str
    batch: int
    lambdas: tuple[float, ...]
    p50_ms: tuple[float, ...] | None
    """Median of each λ."""
    max_relative_spread: float | None
    p_value: float | None
    """Chance of such a spread if λ changed nothing (permutation test within rounds of λ)."""
    num_samples: int | None
    reason: str | None
    """Why the figures are None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleId:
    """Which trained network was measured."""

    run: str
    checkpoint_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything one bench found."""

    environment: Environment
    settings: dict[str, Any]
    bundle: BundleId
    rows: tuple[Row, ...]
    lambda_cost: tuple[LambdaCost, ...]
    lambda_flatness: tuple[LambdaFlatness, ...]
    samples_file: str | None
    """Raw latency samples, beside the report."""
    warnings: tuple[str, ...]
    transfer: tuple[TransferGrid, ...] = ()
    """By attack; the targets are files that take λ as an input, one per width."""
    profile: tuple[ArtifactProfile, ...] = ()
    """Times of layers, of the files that take λ as an input (bench --profile)."""
    transfer_artifacts: tuple[str, ...] | None = None
    """Those files; None in reports from before, which do not say."""
    monitor: MonitorFacts | None = None
    """How power, clocks and temperatures were watched."""
    idle: SpanState | None = None
    """The machine at rest, before the bench."""
    failures: dict[str, str] = field(default_factory=dict)
    """Cells that failed, such as "latency w0.50-fp32.onnx batch 16", and why."""
    precisions: tuple[PrecisionDrop, ...] = ()
    """Every file that is not float32 beside the one that is, by λ."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values of schema oat-edge/bench/1; no NaN."""
        value: dict[str, Any] = {"schema": SCHEMA, **schema.dump(self)}
        return value

    @classmethod
    def from_json(cls, value: Any) -> Report:
        """Read what `to_json` gave; anything else raises `InputError`."""
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            got = value.get("schema") if isinstance(value, dict) else type(value).__name__
            raise InputError(f"bench report has schema {got!r}, expected '{SCHEMA}': {REMEDY}")
        return schema.load(cls, {k: v for k, v in value.items() if k != "schema"}, "bench report")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read a report file; damage raises `InputError`."""
        return cls.from_json(read_json(path, what="bench report", remedy=REMEDY))

    @property
    def kinds(self) -> tuple[tuple[str, str], ...]:
        """Formats and precisions of the rows, in their order."""
        return tuple(dict.fromkeys(row.kind for row in self.rows))

    @property
    def transfer_rows(self) -> tuple[Row, ...]:
        """Rows of the files that the transfer grids are of, as far as the report says."""
        files = self.transfer_artifacts
        return tuple(row for row in self.knob_rows if files is None or row.artifact in files)

    @property
    def knob_rows(self) -> tuple[Row, ...]:
        """Rows of the files that take λ as an input, without the pinned ones."""
        pinned = {cost.pinned_artifact for cost in self.lambda_cost}
        return tuple(row for row in self.rows if row.artifact not in pinned)


def save_report(report: Report, samples: Sequence[LatencySamples], path: Path) -> Report:
    """Write `path` and, beside it, the raw samples as {stem}-samples.npz.

    The .npz holds two arrays per measurement, "{artifact} batch {n}|latency_ns" and
    "…|lambda_index", and on a GPU "…|device_ms". Returns the report as written, in which
    `samples_file` is set.
    """
    samples_path = path.with_name(f"{path.stem}-samples.npz")
    arrays: dict[str, Any] = {}
    for one in samples:
        arrays[f"{one.name}|latency_ns"] = one.latency_ns
        arrays[f"{one.name}|lambda_index"] = one.lambda_index.astype(np.int16)
        if one.device_ms is not None:
            arrays[f"{one.name}|device_ms"] = one.device_ms
    with atomic_path(samples_path) as temporary:
        np.savez_compressed(temporary, **arrays)
    warnings = tuple(warning for warning in report.warnings if warning != NOT_SAVED)
    saved = replace(report, samples_file=samples_path.name, warnings=warnings)
    write_json(path, saved.to_json())
    return saved


def write_csv(report: Report, path: Path) -> None:
    """Write the rows, one line each; nested figures become columns such as latency_ms.p50."""
    lines = [flat_row(schema.dump(row)) for row in report.rows]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(lines)


def flat_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of JSON values with nested figures as columns such as latency_ms.p50."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": item for inner, item in flat_row(value).items()}
        else:
            flat[key] = "; ".join(value) if isinstance(value, list) else value
    return flat
