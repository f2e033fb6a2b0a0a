"""Where the time of a request goes: the layers of an open artifact, as the back end runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from oat_edge.bundle import Artifact
from oat_edge.runtime.runner import Float32, LayerTime, Runner


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShare:
    """One layer; fused ones are one."""

    name: str
    kind: str
    """Operator or kernel family."""
    ms: float
    """Median over the profiled requests."""
    share: float
    """Of the sum over all layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactProfile:
    """Layers of one artifact at one batch, in the order in which they run."""

    artifact: str
    batch: int
    backend: str
    layers: tuple[LayerShare, ...]
    total_ms: float
    """Sum over the layers. Looking costs time: it is more than the latency."""


def profile_artifact(
    artifact: Artifact, runner: Runner, images: Mapping[int, Float32], *, runs: int
) -> tuple[ArtifactProfile, ...]:
    """Profiles of the smallest and the largest batch.  images: by batch.

    λ goes through the trained knots within a batch; a batch of one has the last.
    """
    profiles = []
    for batch in sorted({min(images), max(images)}):
        lam = np.resize(np.array(runner.io.lambdas[::-1], dtype=np.float32), batch)
        layers = runner.profile(images[batch], lam, runs=runs)
        profiles.append(_profile(artifact, batch, runner.backend, layers))
    return tuple(profiles)


def _profile(
    artifact: Artifact, batch: int, backend: str, layers: Sequence[LayerTime]
) -> ArtifactProfile:
    total_ms = sum(layer.ms for layer in layers)
    shares = tuple(
        LayerShare(
            name=layer.name,
            kind=layer.kind,
            ms=layer.ms,
            share=layer.ms / total_ms if total_ms else 0.0,
        )
        for layer in layers
    )
    return ArtifactProfile(
        artifact=artifact.file, batch=batch, backend=backend, layers=shares, total_ms=total_ms
    )
