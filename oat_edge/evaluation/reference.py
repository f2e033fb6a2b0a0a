"""What artifacts are compared with: the unfolded torch network, else the bundle's float32 files.

N images, L lambdas, K classes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import DependencyError, InputError
from oat_edge.evaluation.parity import Logits, expected_logits
from oat_edge.files import sha256_file
from oat_edge.require import require
from oat_edge.runtime import open_artifact
from oat_edge.runtime.engines import Say, silent
from oat_edge.runtime.runner import Float32

if TYPE_CHECKING:
    from oat_edge.nn.network import OATSNetwork
    from oat_edge.train.checkpoint import Checkpoint

CHECKPOINT = "checkpoint.safetensors"
RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceFacts:
    """What stands in a report about the reference."""

    backend: str
    """ "torch-cpu" or "onnxruntime-cpu"."""
    network: str
    """What it runs."""
    checkpoint_sha256: str
    versions: dict[str, str]
    reason: str | None
    """Why it is not torch."""


def find_checkpoint(bundle: Bundle, named: Path | None) -> tuple[Checkpoint | None, str | None]:
    """The checkpoint that the bundle was made from; without one, the reason.

    named: a run directory or a checkpoint file, which must be the one; None looks for it among
    the runs of this folder. Raises `InputError` if the named one is another, `DependencyError`
    if it is named and torch is missing.
    """
    if named is None:
        places = (RUNS / bundle.run / CHECKPOINT, RUNS / "latest" / CHECKPOINT)
        if not any(_is_of(bundle, file) for file in places):
            return None, f"no run in {RUNS}/ has checkpoint {bundle.checkpoint_sha256[:12]}…"
        file = next(file for file in places if _is_of(bundle, file))
    else:
        file = named / CHECKPOINT if named.is_dir() else named
        if not file.is_file():
            raise InputError(f"there is no checkpoint at {file}: name the bundle's run")
        if not _is_of(bundle, file):
            raise InputError(
                f"{file} is not what bundle {bundle.path.name} was made from (checkpoint "
                f"{bundle.checkpoint_sha256[:12]}…): name that run, or leave --checkpoint out"
            )
    try:
        require("torch", purpose="the PyTorch reference")
        require("safetensors", purpose="the PyTorch reference")
    except DependencyError as error:
        if named is not None:
            raise
        return None, str(error)
    from oat_edge.train.checkpoint import load_checkpoint

    return load_checkpoint(file), None


def _is_of(bundle: Bundle, file: Path) -> bool:
    return file.is_file() and sha256_file(file) == bundle.checkpoint_sha256


def network_logits(network: OATSNetwork, width: float) -> Logits:
    """One width of a network as trained: not folded, nothing sliced beforehand."""
    import torch

    def logits(images: Float32, lam: Float32) -> Float32:
        with torch.inference_mode():
            out = network(torch.from_numpy(images), torch.from_numpy(lam), width)
        found: Float32 = out.numpy()
        return found

    return logits


@dataclass(slots=True)
class Reference:
    """The reference's logits, computed once per width, λ and image.

    checkpoint: None takes the bundle's fp32 files in ONNX Runtime on the CPU; then `reason` says
    why. images: all that will be asked for.
    """

    bundle: Bundle
    images: Float32
    checkpoint: Checkpoint | None
    reason: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    _known: dict[tuple[float, float], Float32] = field(default_factory=dict)

    def expected(
        self,
        artifact: Artifact,
        lambdas: Sequence[float],
        num_images: int,
        say: Say = silent,
    ) -> Float32:
        """(L, num_images, K) of what `artifact` should give at these λ."""
        known = self._known
        keys = [(artifact.width, lam) for lam in lambdas]
        missing = [key for key in keys if len(known.get(key, ())) < num_images]
        if missing:
            text = f"reference at width {artifact.width:g}: {num_images} images at {len(missing)} λ"
            say(text)
            with self._logits(artifact) as logits:
                for done, key in enumerate(missing):
                    images = self.images[len(known.get(key, ())) : num_images]
                    more = expected_logits(logits, images, (key[1],))[0]
                    known[key] = np.concatenate([known[key], more]) if key in known else more
                    say(text, (done + 1) / len(missing))
        return np.stack([known[key][:num_images] for key in keys])

    def file_for(self, artifact: Artifact) -> Artifact | None:
        """The bundle's fp32 file that `artifact` is compared with; None: torch.

        Raises `InputError`, saying what to do, if there is no reference at all.
        """
        if self.checkpoint is not None:
            return None
        files = [
            one
            for one in self.bundle.of_format("onnx")  # λ-input before pinned
            if one.width == artifact.width
            and one.precision_requested == "fp32"
            and one.pinned_lambda in (None, artifact.pinned_lambda)
        ]
        if not files:
            raise InputError(
                f"{artifact.file} has nothing to be compared with ({self.reason}, and bundle "
                f"{self.bundle.path.name} has no fp32 ONNX file of width {artifact.width:g}): name "
                f"its run with --checkpoint, or oat-edge export --width {artifact.width:g}"
            )
        return files[0]

    def facts(self) -> ReferenceFacts:
        """What to say about it."""
        if self.checkpoint is not None:
            backend, network = "torch-cpu", f"unfolded network of run {self.checkpoint.run}"
        else:
            backend, network = "onnxruntime-cpu", "fp32 ONNX files of the bundle, one λ per batch"
        return ReferenceFacts(
            backend=backend,
            network=network,
            checkpoint_sha256=self.bundle.checkpoint_sha256,
            versions=self.versions,
            reason=self.reason,
        )

    @contextmanager
    def _logits(self, artifact: Artifact) -> Iterator[Logits]:
        """The reference of one artifact, open."""
        if self.checkpoint is not None:
            self.versions["torch"] = require("torch", purpose="the PyTorch reference").__version__
            yield network_logits(self.checkpoint.network, artifact.width)
            return
        file = self.file_for(artifact)
        assert file is not None
        with open_artifact(self.bundle, file) as runner:
            self.versions.update(runner.versions)
            yield runner.infer
