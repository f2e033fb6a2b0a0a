"""Points, real bundles of tiny networks, and reports of them whose accuracies are measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from hypothesis import strategies as st
from onnx import numpy_helper

from oat_edge.bench.inputs import load_packs
from oat_edge.bench.report import BundleId, Report
from oat_edge.bundle import Artifact, Bundle, add_artifacts
from oat_edge.calib.goal import Goal
from oat_edge.calib.points import Point
from oat_edge.files import sha256_file, write_json
from tests.bench.conftest import CHECKPOINT, KNOTS, SPEC, make_pack, write_network
from tests.bench.made_up import latency, make_report

NUM = 150
WIDE = "w1.00-fp32.onnx"


def point(**facts: object) -> Point:
    """A point with all figures."""
    usual: dict[str, object] = {
        "artifact": WIDE,
        "sha256": "a" * 64,
        "format": "onnx",
        "precision": "fp32",
        "width": 1.0,
        "lam": 0.0,
        "batch": 1,
        "latency_ms": 1.0,
        "standard_accuracy": 0.9,
        "robust_accuracy": 0.4,
        "energy_mj": 1.0,
        "memory_mb": 50.0,
        "num_samples": 50,
        "attacks": ("pgd20",),
    }
    return Point(**{**usual, **facts})  # type: ignore[arg-type]


# Few values, so that ties are common; None is a figure that is not known.
shares = st.sampled_from([None, *(k / 50 for k in (0, 10, 20, 21, 30, 49, 50))])
costs = st.sampled_from([None, 0.5, 1.0, 2.0, 5.0, 5.5])
points = st.builds(
    point,
    artifact=st.sampled_from(["a.onnx", "b.onnx", "c.engine"]),
    width=st.sampled_from([0.5, 0.75, 1.0]),
    lam=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    latency_ms=costs,
    standard_accuracy=shares,
    robust_accuracy=shares,
    energy_mj=costs,
    memory_mb=costs,
    pinned=st.booleans(),
    robust_ceiling=st.sampled_from([None, None, 0.3, 0.42]),
    between_knots=st.booleans(),
)
pools = st.lists(points, max_size=12)


def bounds(values: tuple[float, ...]) -> st.SearchStrategy[float | None]:
    return st.sampled_from([None, None, *values])


goals = st.builds(
    Goal,
    max_latency_ms=bounds((0.5, 1.0, 3.0, 5.0)),
    min_robust=bounds((0.0, 0.2, 0.4, 0.41, 1.0)),
    min_standard=bounds((0.2, 0.42, 0.9)),
    max_energy_mj=bounds((1.0, 5.0)),
    max_memory_mb=bounds((0.5, 2.0)),
    confident=st.booleans(),
    prefer=st.sampled_from(["robust", "standard", "latency"]),
)


def make_bundle(folder: Path, *, pinned: bool = True) -> Bundle:
    """Widths 0.5 and 1 with λ as an input, one file pinned at 0.3, and packs of NUM images.

    A trade-off as λ is there for: the labels are what a width says at λ = 0.3, but for some, and
    its adversarial images are those that it gets wrong there and right at λ = 1.
    """
    folder.mkdir(parents=True)
    artifacts = []

    def add(name: str, width: float, format: str, **facts: object) -> None:
        digest = sha256_file(folder / name)
        artifacts.append(
            Artifact(file=name, sha256=digest, format=format, width=width, **facts)  # type: ignore[arg-type]
        )

    for name, width, lam in (
        ("w0.50-fp32.onnx", 0.5, None),
        (WIDE, 1.0, None),
        ("w0.50-lambda0.3-fp32.onnx", 0.5, 0.3),
    ):
        if lam is None or pinned:
            write_gentle(folder / name, seed=int(100 * width), pinned_lambda=lam)
            add(name, width, "onnx", pinned_lambda=lam)
    clean = make_pack(1.0, num=NUM)
    wide = session_of(folder / WIDE)
    labels = logits(wide, clean.images, 0.3).argmax(axis=1)
    labels[::5] = (labels[::5] + 1) % 3
    for width in (0.5, 1.0):
        session, rng = session_of(folder / f"w{width:.2f}-fp32.onnx"), np.random.default_rng(1)
        adversarial = clean.adversarial.copy()
        for _ in range(200):
            noise = rng.choice([-8, 8], adversarial[0].shape)
            images = (clean.images + noise).astype(np.uint8)
            wrong = logits(session, images, 0.3).argmax(axis=1) != labels
            right = logits(session, images, 1.0).argmax(axis=1) == labels
            adversarial[:, wrong & right] = images[wrong & right]
        pack = dataclasses.replace(clean, width=width, labels=labels, adversarial=adversarial)
        pack.save(folder / f"attacks-w{width:.2f}-pgd20.npz")
        add(f"attacks-w{width:.2f}-pgd20.npz", width, "attacks", attack="pgd20")
    add_artifacts(folder, artifacts, run="tiny-run", checkpoint_sha256=CHECKPOINT, spec=SPEC)
    return Bundle.open(folder)


def write_gentle(path: Path, seed: int, pinned_lambda: float | None) -> None:
    """A network in which λ shifts the logits by about as much as an attack does."""
    write_network(path, seed=seed, pinned_lambda=pinned_lambda)
    model = onnx.load(path)
    (shift,) = [one for one in model.graph.initializer if one.name == "v"]
    shift.CopyFrom(numpy_helper.from_array(0.1 * numpy_helper.to_array(shift), "v"))
    onnx.save(model, path)


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime itself."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def logits(session: onnxruntime.InferenceSession, images: np.ndarray, lam: float) -> np.ndarray:
    """Of 8-bit images at one λ, straight from ONNX Runtime."""
    image = images.astype(np.float32) / np.float32(255)
    inputs = {"image": image, "lambda": np.full(len(image), lam, np.float32)}
    names = [one.name for one in session.get_inputs()]
    (found,) = session.run(None, {name: inputs[name] for name in names})
    return found


def measured_plainly(bundle: Bundle, file: str, lam: float) -> tuple[float, float]:
    """(SA, worst-case RA) of a file at λ over all packs: the definition, without oat_edge's own."""
    packs = load_packs(bundle, ())
    assert packs is not None
    session = session_of(bundle.path / file)

    def right(images: np.ndarray) -> np.ndarray:
        return logits(session, images, lam).argmax(axis=1) == packs.labels

    clean = right(packs.images)
    worst = clean.copy()
    for pack in packs.packs:
        for images in pack.adversarial:
            worst &= right(images)
    return float(clean.mean()), float(worst.mean())


def report_of(bundle: Bundle, **facts: object) -> Report:
    """A report of the bundle: the accuracies are its own, measured plainly, the times are not."""
    there = {artifact.file: artifact for artifact in bundle.artifacts}
    pinned = any(artifact.pinned_lambda is not None for artifact in bundle.artifacts)
    made = make_report(lambdas=KNOTS, batches=(1, 16), pinned=(), **facts)
    if pinned:
        extra = make_report(widths=(0.5,), lambdas=(), batches=(1, 16), pinned=(0.3,), **facts)
        named = {"w0.50-lambda0.3-fp32.onnx": "w0.50-lambda0.3-fp32.onnx"}
        assert set(named) <= set(there) and {row.artifact for row in extra.rows} == set(named)
        made = dataclasses.replace(
            made, rows=(*made.rows, *extra.rows), lambda_cost=extra.lambda_cost
        )
    rows = []
    for row in made.rows:
        standard, worst = measured_plainly(bundle, row.artifact, row.lam)
        rows.append(
            dataclasses.replace(
                row,
                sha256=there[row.artifact].sha256,
                latency_ms=latency(
                    row.width * row.batch * (0.8 if "lambda" in row.artifact else 1)
                ),
                standard_accuracy=standard,
                robust_accuracy={"pgd20": worst, "worst": worst},
                num_samples=NUM,
            )
        )
    return dataclasses.replace(
        made,
        rows=tuple(rows),
        settings={**made.settings, "device": "cpu", "threads": 1, "queries": 50, "seed": 3},
        bundle=BundleId(run=bundle.run, checkpoint_sha256=bundle.checkpoint_sha256),
    )


def save(report: Report, path: Path) -> Path:
    """Write a report file."""
    write_json(path, report.to_json())
    return path
