"""What a comparison found, as data (schema oat-edge/compare/1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oat_edge.bench.environment import Environment
from oat_edge.bench.report import BundleId
from oat_edge.bench.schema import dump
from oat_edge.evaluation.parity import AtLambda, Gate
from oat_edge.evaluation.reference import ReferenceFacts

SCHEMA = "oat-edge/compare/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One artifact in one back end."""

    artifact: str
    sha256: str | None
    """Of the file that ran."""
    format: str
    backend: str
    device: str
    precision: str
    """What ran; "fp16-emulated": half precision on a CPU, in float32 between casts."""
    width: float
    pinned_lambda: float | None
    max_abs_diff: float | None
    """Largest difference of a logit; None: some logits are not finite numbers."""
    mean_abs_diff: float | None
    relative_diff: float | None
    """`max_abs_diff` over the reference's largest logit."""
    argmax_agreement: float
    """Share of pairs of an image and a λ that have the reference's class."""
    num_pairs: int
    num_not_finite: int
    """Pairs with a logit that is not a finite number."""
    gate: Gate
    passed: bool | None
    """None: no gate, or it is the reference itself and mixing λ and batch sizes did no harm."""
    is_reference: bool
    """The file that the others are compared with: its weights are compared with nothing."""
    failure: str | None
    """What is wrong with its logits where classes alone would not show it."""
    batch_sizes: tuple[int, ...]
    by_lambda: tuple[AtLambda, ...]
    versions: dict[str, str]
    remarks: tuple[str, ...]

    @property
    def worst_lambda(self) -> float:
        """Where it is farthest from the reference, by what its gate looks at."""

        def key(one: AtLambda) -> float:
            if one.max_abs_diff is None:
                return float("inf")
            share = self.gate.kind == "argmax_agreement"
            return 1 - one.argmax_agreement if share else one.max_abs_diff

        return max(self.by_lambda, key=key).lam

    @property
    def excess(self) -> float:
        """How far beyond its gate: 1 is just at the limit; infinite for logits not finite."""
        if self.max_abs_diff is None:
            return float("inf")
        if self.gate.limit is None:
            return 0.0
        if self.gate.kind == "argmax_agreement":
            share = (1 - self.argmax_agreement) / (1 - self.gate.limit)
            relative = (self.relative_diff or 0.0) / (self.gate.max_relative_diff or 1.0)
            return max(share, relative)
        return self.max_abs_diff / self.gate.limit


@dataclass(frozen=True, kw_only=True, slots=True)
class NotRun:
    """An artifact that was chosen and cannot run on the device."""

    artifact: str
    format: str
    width: float
    pinned_lambda: float | None
    precision: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A whole comparison."""

    environment: Environment
    settings: dict[str, Any]
    bundle: BundleId
    reference: ReferenceFacts
    rows: tuple[Row, ...]
    """By width, λ-input before pinned, then file and device."""
    not_run: tuple[NotRun, ...]

    @property
    def failed(self) -> list[Row]:
        """Rows that did not pass their gate, worst first."""
        failed = [row for row in self.rows if row.passed is False]
        return sorted(failed, key=lambda row: -row.excess)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"schema": SCHEMA, **dump(self)}
