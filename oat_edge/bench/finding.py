"""A trouble of a report's figures, as the rules for it state one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "failed", "fallback", "throttled", "unstable", "busy", "λ-dependent latency",
    "transfer-bound", "enqueue-bound", "masked gradients",
]  # fmt: skip

Measurement = tuple[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One trouble of one measurement."""

    kind: Kind
    at: Measurement | None
    """None: it is the machine's."""
    evidence: str
    remedy: str
    size: float = 0.0
    """The largest is the worst."""
    covers: tuple[str, ...] = ()
    """Warnings that say the same."""
