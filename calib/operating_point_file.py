"""A chosen operating point on disk: operating_point.json (schema oat-edge/operating-point/1).

`open_runner(bundle, operating_point=…)` opens what it names. It carries the hash of its own
content: whoever can set λ can turn robustness off, so damage is not read over.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oat_edge import __version__
from oat_edge.bench import schema
from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import InputError
from oat_edge.files import read_json, write_json
from oat_edge.operating_point import OperatingPoint

SCHEMA = "oat-edge/operating-point/1"
REMEDY = "choose again with `oat-edge calibrate`"


def is_operating_point(path: Path) -> bool:
    """Whether the file says that it is one; it may be damaged all the same."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, OSError):
        return False
    return isinstance(value, dict) and value.get("schema") == SCHEMA


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What was measured of a point. Shares in [0, 1], 95 % intervals (Wilson); None: not known."""

    latency_ms: float | None
    """Of one request, at the percentile that the constraints name."""
    standard_accuracy: float | None
    standard_accuracy_interval: tuple[float, ...] | None
    robust_accuracy: float | None
    """Worst case over `attacks`: an upper bound."""
    robust_accuracy_interval: tuple[float, ...] | None
    robust_accuracy_counted: float | None
    """As the constraints see it: between knots never more than at the better of the two."""
    attacks: tuple[str, ...]
    energy_mj: float | None
    memory_mb: float | None
    num_samples: int | None
    measured_between_knots: bool
    """The accuracies are those of a search of λ, not of the report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerUp:
    """Another point that meets the constraints."""

    artifact: str
    width: float
    lam: float
    precision: str
    figures: Figures


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReport:
    """A bench report that figures are from."""

    file: str
    sha256: str
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPointFile:
    """What to open and at which λ, and the evidence for it."""

    run: str
    checkpoint_sha256: str
    artifact: str
    sha256: str
    """Of the artifact; empty for an engine that is built on the device."""
    format: str
    precision: str
    width: float
    lam: float
    pinned: bool
    """λ is folded into the artifact."""
    device: str
    """The machine that was measured."""
    runner_device: str
    """What runners call it: "cpu" or "cuda"."""
    threads: int | None
    """CPU threads of one request when its latency was measured."""
    batch: int
    """Images per request that the latency holds for."""
    constraints: dict[str, Any]
    """The goal, by its names on the command line; null is no constraint."""
    margins: dict[str, float | None]
    """By constrained figure, how much is to spare, in its unit."""
    figures: Figures
    sources: tuple[SourceReport, ...]
    runners_up: tuple[RunnerUp, ...]
    warnings: tuple[str, ...]
    version: str = __version__

    def __post_init__(self) -> None:
        OperatingPoint(self.width, self.lam)
        if self.runner_device not in ("cpu", "cuda"):
            raise InputError(f"runner_device is '{self.runner_device}': expected cpu or cuda")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values of schema oat-edge/operating-point/1, with their hash."""
        value: dict[str, Any] = {"schema": SCHEMA, **schema.dump(self)}
        return {**value, "integrity": _digest(value)}

    @classmethod
    def from_json(cls, value: Any, where: str = "operating point") -> OperatingPointFile:
        """Read what `to_json` gave; anything else raises `InputError`."""
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            got = value.get("schema") if isinstance(value, dict) else type(value).__name__
            raise InputError(f"{where} has schema {got!r}, expected '{SCHEMA}': {REMEDY}")
        content = {key: item for key, item in value.items() if key != "integrity"}
        if value.get("integrity") != _digest(content):
            raise InputError(f"{where} is damaged (integrity hash differs): {REMEDY}")
        del content["schema"]
        return schema.load(cls, content, where)

    @classmethod
    def load(cls, path: str | Path) -> OperatingPointFile:
        """Read a file; damage raises `InputError`."""
        value = read_json(Path(path), what="operating point", remedy=REMEDY)
        return cls.from_json(value, str(path))

    def save(self, path: str | Path) -> None:
        """Write a file, whole or not at all."""
        write_json(Path(path), self.to_json())

    def artifact_in(self, bundle: Bundle) -> Artifact:
        """The entry of its artifact; `InputError` if the bundle has another network or file.

        The content is checked against the entry when it is opened.
        """
        if bundle.checkpoint_sha256 != self.checkpoint_sha256:
            raise InputError(
                f"the operating point is of checkpoint {self.checkpoint_sha256[:12]}…, bundle "
                f"{bundle.path.name} of {bundle.checkpoint_sha256[:12]}…: {REMEDY}"
            )
        for artifact in bundle.artifacts:
            if artifact.file == self.artifact:
                break
        else:
            raise InputError(f"bundle {bundle.path.name} has no {self.artifact}: {REMEDY}")
        if artifact.sha256 != self.sha256:
            raise InputError(
                f"{self.artifact} is not the file that was measured (sha256 "
                f"{artifact.sha256[:12]}…, the operating point says {self.sha256[:12]}…): "
                "bench and calibrate again"
            )
        return artifact


def _digest(value: dict[str, Any]) -> str:
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # A damaged escape can decode to half a character, which plain UTF-8 cannot encode.
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()
