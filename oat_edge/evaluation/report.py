"""The evaluation report: schema oat-edge/eval/1 (DESIGN, section 5), and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from oat_edge.bench import schema
from oat_edge.bench.environment import Environment
from oat_edge.bench.report import BundleId
from oat_edge.errors import InputError
from oat_edge.evaluation.accuracy import interval
from oat_edge.evaluation.checks import Check
from oat_edge.evaluation.outcome import Outcome
from oat_edge.evaluation.pack import Int64
from oat_edge.evaluation.precisions import PrecisionDrop
from oat_edge.evaluation.transfer import TransferGrid
from oat_edge.files import atomic_path, read_json, write_json
from oat_edge.operating_point import OperatingPoint

SCHEMA = "oat-edge/eval/1"
REPORT, SAMPLES = "eval.json", "eval-samples.npz"
REMEDY = "evaluate again with `oat-edge eval`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What computes the logits of a row."""

    artifact: str
    """File name."""
    sha256: str
    format: str
    """ "checkpoint" for the PyTorch network, else the artifact's."""
    backend: str
    precision: str
    pinned: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRow:
    """One operating point of one artifact. Shares in [0, 1], intervals at 95 % (Wilson)."""

    artifact: str
    sha256: str
    format: str
    backend: str
    width: float
    lam: float
    pinned: bool
    """Whether λ is folded into the file for good."""
    precision: str
    num_samples: int
    standard_accuracy: float
    standard_accuracy_interval: tuple[float, ...]
    robust_accuracy: dict[str, float]
    """By attack, "transfer" and "worst". Upper bounds: they hold against what was tried."""
    robust_accuracy_interval: dict[str, tuple[float, ...]]
    worst_without_transfer: float
    """Under the attacks on this very point alone: what "worst" was without transfer."""
    checks: tuple[Check, ...]
    """For masked gradients."""
    seconds: dict[str, float]
    """By part of the evaluation; what an earlier, stopped one spent is included."""
    status: Literal["ok", "suspect"]
    """suspect: a check was flagged, do not trust the robust accuracy."""
    warnings: tuple[str, ...]

    @property
    def point(self) -> OperatingPoint:
        """Where on the grid."""
        return OperatingPoint(self.width, self.lam)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """Everything one evaluation found."""

    environment: Environment
    settings: dict[str, Any]
    bundle: BundleId
    rows: tuple[EvalRow, ...]
    transfer: tuple[TransferGrid, ...]
    samples_file: str | None
    """Per image and attack whether it stayed right, beside the report."""
    warnings: tuple[str, ...]
    precisions: tuple[PrecisionDrop, ...] = ()
    """Every file that is not float32 beside the one that is, by λ."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; no NaN."""
        value: dict[str, Any] = {"schema": SCHEMA, **schema.dump(self)}
        return value

    @classmethod
    def load(cls, path: Path) -> EvalReport:
        """Read a report file; damage raises `InputError`."""
        value = read_json(path, what="evaluation report", remedy=REMEDY)
        if value.get("schema") != SCHEMA:
            raise InputError(
                f"evaluation report has schema {value.get('schema')!r}, expected '{SCHEMA}': "
                f"{REMEDY}"
            )
        fields = {key: item for key, item in value.items() if key != "schema"}
        return schema.load(cls, fields, "evaluation report")


def make_row(
    subject: Subject,
    point: OperatingPoint,
    outcome: Outcome,
    checks: list[Check],
    *,
    seconds: Mapping[str, float],
    warnings: tuple[str, ...] = (),
) -> EvalRow:
    """The row of one operating point."""
    accuracy = outcome.accuracy()
    n = accuracy.num_samples
    return EvalRow(
        artifact=subject.artifact,
        sha256=subject.sha256,
        format=subject.format,
        backend=subject.backend,
        width=point.width,
        lam=point.lam,
        pinned=subject.pinned,
        precision=subject.precision,
        num_samples=n,
        standard_accuracy=accuracy.standard_accuracy,
        standard_accuracy_interval=interval(accuracy.standard_accuracy, n),
        robust_accuracy=accuracy.robust_accuracy,
        robust_accuracy_interval={
            name: interval(share, n) for name, share in accuracy.robust_accuracy.items()
        },
        worst_without_transfer=outcome.worst_of_own,
        checks=tuple(checks),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        status="suspect" if any(check.flagged for check in checks) else "ok",
        warnings=warnings,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluation:
    """A report, and per image what it is made of."""

    report: EvalReport
    indices: Int64
    """(N,) places of the images in the test split."""
    labels: Int64
    """(N,)"""
    outcomes: Mapping[str, Outcome]
    """By row, as `row_name` names it."""

    def save(self, folder: Path) -> EvalReport:
        """Write eval.json and eval-samples.npz into `folder`; returns the report as written.

        The .npz has (N,) arrays: indices, labels, and "{row}|clean", "{row}|{attack}" as bool.
        """
        arrays: dict[str, Any] = {"indices": self.indices, "labels": self.labels}
        for row, outcome in self.outcomes.items():
            arrays[f"{row}|clean"] = outcome.clean
            arrays |= {f"{row}|{attack}": right for attack, right in outcome.robust.items()}
        with atomic_path(folder / SAMPLES) as temporary:
            np.savez_compressed(temporary, **arrays)
        report = replace(self.report, samples_file=SAMPLES)
        write_json(folder / REPORT, report.to_json())
        return report


def row_name(artifact: str, point: OperatingPoint) -> str:
    """Name of a row among the per-image results; no two rows share one."""
    return f"{artifact} w={_exact(point.width)} λ={_exact(point.lam)}"


def _exact(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
