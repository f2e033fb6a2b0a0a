"""Every network of a bundle in every back end against one reference: how far apart they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oat_edge.bench.environment import collect
from oat_edge.bench.inputs import check_lambdas, read_packs
from oat_edge.bench.report import BundleId
from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import InputError
from oat_edge.evaluation.accuracy import to_float
from oat_edge.evaluation.comparison import Comparison, NotRun, Row
from oat_edge.evaluation.parity import (
    MIN_PAIRS,
    batch_sizes,
    compare_logits,
    compared_lambdas,
    describe_relative,
    gate_for,
)
from oat_edge.evaluation.reference import Reference
from oat_edge.files import sha256_file
from oat_edge.runtime import open_artifact
from oat_edge.runtime.artifacts import ENGINES, FORMATS
from oat_edge.runtime.engines import Say, silent
from oat_edge.runtime.recipe import PRECISIONS, Recipe
from oat_edge.runtime.runner import Float32

if TYPE_CHECKING:
    from oat_edge.train.checkpoint import Checkpoint

DEVICES = ("cpu", "cuda")
# A network with one λ makes fewer pairs of an image: it gets more images.
MORE_IMAGES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig:
    """What is compared. Validation only."""

    device: str = "cpu"
    """ "cpu"; "cuda" adds ONNX Runtime's CUDA provider and the engines."""
    widths: tuple[float, ...] | None = None
    """None: all of the bundle."""
    lambdas: tuple[float, ...] | None = None
    """Of networks that take λ as an input; None: the knots and points between them."""
    formats: tuple[str, ...] | None = None
    """None: all of the bundle."""
    precisions: tuple[str, ...] | None = None
    """None: all of the bundle."""
    num_samples: int = 64
    """Images, each at every λ; a network with one λ gets four times as many."""
    seed: int = 0
    """Chooses the images."""

    def __post_init__(self) -> None:
        for name, values, known in (
            ("device", (self.device,), DEVICES),
            ("format", self.formats, FORMATS),
            ("precision", self.precisions, PRECISIONS),
        ):
            for value in values or ():
                if value not in known:
                    raise InputError(f"{name} is '{value}': expected {', '.join(known)}")
        if self.num_samples < 1:
            raise InputError(f"samples is {self.num_samples}: expected 1 or more")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}: expected 0 or more")


def compare_bundle(
    bundle: Bundle,
    config: CompareConfig,
    *,
    checkpoint: Checkpoint | None,
    reason: str | None = None,
    say: Say = silent,
) -> Comparison:
    """Compare what the bundle holds, in all back ends of the device, with one reference.

    checkpoint: the one the bundle was made from; None takes the bundle's fp32 files in ONNX
    Runtime as the reference, and `reason` says why. A failed gate is a row with passed=False, not
    an exception. Raises `InputError` (nothing to compare, no reference), `DependencyError`,
    `BuildError`, `FallbackError`: nothing that the device implies is left out.
    """
    check_lambdas(bundle, config.lambdas or ())
    todo, not_run = _choose(bundle, config)
    images, source = _images(bundle, config)
    reference = Reference(bundle=bundle, images=images, checkpoint=checkpoint, reason=reason)
    for artifact, _ in todo:
        reference.file_for(artifact)  # there is one, or nothing is begun
    rows = {
        (artifact.file, device): _row(bundle, artifact, device, config, reference, say)
        # What is most likely missing is opened first: not after minutes of comparing.
        for artifact, device in sorted(todo, key=lambda t: (t[1] == "cpu", t[0].format == "onnx"))
    }
    lambdas = config.lambdas or compared_lambdas(bundle.spec.lambdas)
    return Comparison(
        environment=collect(device=config.device),
        settings={
            **dataclasses.asdict(config),
            "widths": sorted({artifact.width for artifact, _ in todo}),
            "lambdas": list(lambdas),
            "lambda_knots": list(bundle.spec.lambdas),
            "num_samples": min(config.num_samples, len(images)),
            "num_samples_one_lambda": len(images),
            "images": source,
        },
        bundle=BundleId(run=bundle.run, checkpoint_sha256=bundle.checkpoint_sha256),
        reference=reference.facts(),
        rows=tuple(rows[artifact.file, device] for artifact, device in todo),
        not_run=tuple(not_run),
    )


def _choose(
    bundle: Bundle, config: CompareConfig
) -> tuple[list[tuple[Artifact, str]], list[NotRun]]:
    """What runs on which device, in the order of the report, and what cannot."""
    chosen = [
        artifact
        for format in FORMATS
        for artifact in bundle.of_format(format)
        if (config.formats is None or format in config.formats)
        and (config.widths is None or artifact.width in config.widths)
        and (config.precisions is None or artifact.precision_requested in config.precisions)
    ]
    chosen.sort(key=lambda a: (a.width, a.pinned_lambda is not None, FORMATS.index(a.format)))
    todo = [
        (artifact, device)
        for artifact in chosen
        for device in DEVICES[: DEVICES.index(config.device) + 1]
        if device == "cuda" or artifact.format not in ENGINES
    ]
    running = {artifact.file for artifact, _ in todo}
    if not todo:
        hint = "engines need --device cuda" if chosen else "oat-edge inspect says what it has"
        raise InputError(
            f"bundle {bundle.path.name} has nothing of these widths, formats and precisions that "
            f"runs on {config.device}: {hint}"
        )
    return todo, [
        NotRun(
            artifact=artifact.file,
            format=artifact.format,
            width=artifact.width,
            pinned_lambda=artifact.pinned_lambda,
            precision=artifact.precision_requested,
            reason="needs --device cuda",
        )
        for artifact in chosen
        if artifact.file not in running
    ]


def _images(bundle: Bundle, config: CompareConfig) -> tuple[Float32, str]:
    """(N, C, H, W) in an order that mixes classes, and where they are from."""
    num = MORE_IMAGES * config.num_samples
    rng = np.random.default_rng(config.seed)
    packs = read_packs(bundle)
    if packs:
        images = max(packs, key=lambda pack: len(pack.images)).images
        chosen = rng.permutation(len(images))[:num]
        return to_float(images[chosen]), f"clean images of the attack packs, seed {config.seed}"
    noise = rng.random((num, *bundle.spec.image_shape), dtype=np.float32)
    return noise, f"uniform noise, seed {config.seed} (the bundle has no attack packs)"


def _row(
    bundle: Bundle,
    artifact: Artifact,
    device: str,
    config: CompareConfig,
    reference: Reference,
    say: Say,
) -> Row:
    with open_artifact(bundle, artifact, device=device, say=say) as runner:
        lambdas = _lambdas(bundle, artifact, config)
        num = config.num_samples * (1 if len(lambdas) > 1 else MORE_IMAGES)
        images = reference.images[:num]
        expected = reference.expected(artifact, lambdas, len(images), say)
        size = f"{len(images)} images at {len(lambdas)} λ"
        label = f"comparing {artifact.file} in {runner.backend}: {size}"
        say(label)
        batches = Recipe.from_json(artifact.recipe).batches if artifact.recipe else None
        found = compare_logits(
            runner,
            images,
            lambdas,
            expected,
            sizes=batch_sizes(runner, batches),
            progress=lambda share: say(label, share),
        )
        gate = gate_for(runner.precision, runner.device)
        passed = gate.passed(found)
        is_reference = device == "cpu" and reference.file_for(artifact) == artifact
        path: Path | None = getattr(runner, "path", None)
        row = Row(
            artifact=artifact.file,
            sha256=sha256_file(path) if path else artifact.sha256 or None,
            format=artifact.format,
            backend=runner.backend,
            device=runner.device,
            precision=runner.precision,
            width=artifact.width,
            pinned_lambda=artifact.pinned_lambda,
            max_abs_diff=found.max_abs_diff,
            mean_abs_diff=found.mean_abs_diff,
            relative_diff=found.relative_diff,
            argmax_agreement=found.argmax_agreement,
            num_pairs=found.num_pairs,
            num_not_finite=found.num_not_finite,
            gate=gate,
            passed=None if is_reference and passed else passed,
            is_reference=is_reference,
            failure=describe_relative(found, gate),
            batch_sizes=found.batch_sizes,
            by_lambda=found.by_lambda,
            versions=runner.versions,
            remarks=runner.remarks,
        )
    more = _remarks(row, artifact, reference, expected)
    return dataclasses.replace(row, remarks=(*row.remarks, *more))


def _lambdas(bundle: Bundle, artifact: Artifact, config: CompareConfig) -> Sequence[float]:
    if artifact.pinned_lambda is not None:
        return (artifact.pinned_lambda,)
    return config.lambdas or compared_lambdas(bundle.spec.lambdas)


def _remarks(row: Row, artifact: Artifact, reference: Reference, expected: Float32) -> list[str]:
    """What lessens the figures.  expected: (L, N, K)."""
    remarks = []
    half = row.gate.kind == "argmax_agreement"
    if row.is_reference:
        remarks.append("it is the reference itself: only mixed λ and batch sizes are tested")
    if half and row.num_pairs < MIN_PAIRS:
        remarks.append(
            f"{row.num_pairs} pairs are too few for {row.gate.limit:.1%}: none may differ; "
            "use more --samples, or a bundle with more images (export --attack-samples)"
        )
    if half and len(np.unique(expected.argmax(-1))) == 1:
        remarks.append("the reference has one class for all images: the same class says little")
    return remarks
