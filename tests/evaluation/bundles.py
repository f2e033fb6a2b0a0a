"""Bundles of tiny networks with packs, and how the tests of `eval BUNDLE` evaluate them."""

from __future__ import annotations

import numpy as np

from oat_edge.bundle import Artifact, Bundle, add_artifacts
from oat_edge.evaluation.accuracy import to_float
from oat_edge.evaluation.config import EvalConfig
from oat_edge.evaluation.engine import evaluate_bundle
from oat_edge.evaluation.pack import AttackPack
from oat_edge.files import sha256_file
from tests.bench.conftest import KNOTS

WIDTHS = (0.5, 1.0)


def evaluate(bundle, *, widths=WIDTHS, lambdas=KNOTS, fresh=False, progress=None, **changes):
    config = EvalConfig(**{"num_queries": 40, **changes})
    options = {"widths": widths, "lambdas": lambdas, "fresh": fresh}
    if progress:
        options["progress"] = progress
    return evaluate_bundle(bundle, config, **options)


def figures(evaluation):
    value = evaluation.report.to_json()
    del value["environment"]
    for row in value["rows"]:
        row["seconds"] = sorted(row["seconds"])
    return value


def packs_of(bundle):
    return {
        (artifact.attack, artifact.width): AttackPack.load(bundle.checked_path(artifact))
        for artifact in bundle.of_format("attacks")
    }


def right_by_hand(runner, lam, images, labels):
    """One image at a time."""
    logits = [runner.infer(to_float(image[None]), lam)[0] for image in images]
    return np.array([row.argmax() for row in logits]) == labels


def with_pack(bundle, pack):
    path = bundle.path / f"attacks-w{pack.width:.2f}-{pack.attack}.npz"
    pack.save(path)
    artifact = Artifact(
        file=path.name, sha256=sha256_file(path), format="attacks",
        width=pack.width, attack=pack.attack,
    )  # fmt: skip
    add_artifacts(
        bundle.path, [artifact], run=bundle.run,
        checkpoint_sha256=bundle.checkpoint_sha256, spec=bundle.spec,
    )  # fmt: skip
    return Bundle.open(bundle.path)
