"""What the calibration set and the method do to an int8 network's logits.

For each set (λ and kinds of images swept or not) and each method: the relative error of the int8
logits against float32, |int8 - fp32| / |fp32| over all samples of a λ, clean and attacked test
images apart, and how often both choose the same class.

    python -m benchmarks.calibration --checkpoint runs/latest --width 0.5
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import console, save
from oat_edge.calib.batches import KINDS, NUM_IMAGES, CalibrationSet, make_batches
from oat_edge.calib.ranges import DEFAULT_METHOD, METHODS, collect_ranges
from oat_edge.cli.console import plain_table
from oat_edge.data import Split, load
from oat_edge.exporters.int8 import activations, insert_qdq, prepare
from oat_edge.exporters.to_onnx import export
from oat_edge.nn.fold import FoldedNetwork, fold
from oat_edge.runtime.ort import OrtRunner
from oat_edge.runtime.runner import RunnerIO
from oat_edge.train.checkpoint import Checkpoint, load_checkpoint

Float32 = npt.NDArray[np.float32]
PERCENTILES = (99.9, 99.99, 99.999)


class Study:
    """One width of a checkpoint: its float32 graph, its test samples and their logits."""

    def __init__(
        self, checkpoint: Checkpoint, width: float, target: str, samples: int, folder: Path
    ) -> None:
        import onnx

        train, spec = checkpoint.info["train"], checkpoint.spec
        self.data = load(train["data"], train_samples=train["train_samples"], seed=train["seed"])
        self.folded: FoldedNetwork = fold(checkpoint.network, width)
        self.target, self.folder = target, folder
        self.io = RunnerIO.of(spec, None)
        self.knots = spec.lambdas
        self.attack = {
            "eps": spec.eps,
            "attack_steps": train["attack_steps"],
            "attack_alpha": train["attack_alpha"],
        }
        artifact = export(
            self.folded, spec, width=width, folder=folder, checkpoint_sha256=checkpoint.sha256
        )
        self.model = prepare(onnx.load(folder / artifact.file), target=target)
        self.tensors = activations(self.model, target=target)
        self.tests = {
            lam: self.images(self.data.test, (lam,), KINDS, samples, seed=1) for lam in self.knots
        }
        self.expected = self.logits(self.model, "fp32")

    def images(
        self, split: Split, lambdas: tuple[float, ...], kinds: tuple[str, ...], num: int, seed: int
    ) -> CalibrationSet:
        """A set made as a calibration set is."""
        return make_batches(
            self.folded,
            split,
            lambdas=lambdas,
            kinds=kinds,
            num_images=num,
            seed=seed,
            **self.attack,
        )

    def logits(self, model: Any, precision: str) -> dict[float, Float32]:
        """By λ, of all test samples."""
        path = self.folder / "candidate.onnx"
        path.write_bytes(model.SerializeToString())
        with OrtRunner(path, self.io, precision=precision) as runner:
            return {
                lam: np.concatenate([runner.infer(b.image, b.lam) for b in tests.batches()])
                for lam, tests in self.tests.items()
            }

    def errors(self, calibration: CalibrationSet, method: str, **options: Any) -> dict[str, Any]:
        """Error and agreement of the int8 network so calibrated, by λ and kind."""
        ranges = collect_ranges(
            self.model,
            self.tensors,
            calibration,
            method=method,
            symmetric=self.target == "trt",
            **options,
        )
        found = self.logits(insert_qdq(self.model, ranges, target=self.target), "int8")
        by_lambda = {}
        for lam, tests in self.tests.items():
            for kind in KINDS:
                mask = tests.adversarial == (kind == "adversarial")
                want, got = self.expected[lam][mask], found[lam][mask]
                by_lambda[f"{lam:g} {kind}"] = {
                    "relative_error": float(np.linalg.norm(got - want) / np.linalg.norm(want)),
                    "agreement": float((got.argmax(1) == want.argmax(1)).mean()),
                }
        return {"calibration": calibration.to_json(), "method": method, **options, **by_lambda}


def measure(study: Study, num: int) -> dict[str, dict[str, Any]]:
    """Every calibration set with the default method, then every method with the default set."""
    train, knots, middle = study.data.train, study.knots, [0.15, 0.25, 0.35, 0.7]
    swept = study.images(train, knots, KINDS, num, 0)
    between = tuple(sorted({*knots, *middle}))
    sets = {
        "λ swept, both kinds": swept,
        # Twice the images: as many samples, and so as many forward passes.
        "λ swept, clean": study.images(train, knots, ("clean",), 2 * num, 0),
        "λ swept, adversarial": study.images(train, knots, ("adversarial",), 2 * num, 0),
        "λ = 0, both kinds": study.images(train, (0.0,), KINDS, num, 0),
        "λ = 0, clean": study.images(train, (0.0,), ("clean",), 2 * num, 0),
        "λ = 1, both kinds": study.images(train, (1.0,), KINDS, num, 0),
        "λ also between knots": study.images(train, between, KINDS, num, 0),
    }
    found = {name: study.errors(one, DEFAULT_METHOD) for name, one in sets.items()}
    for method in METHODS:
        if method == "percentile":
            for share in PERCENTILES:
                found[f"{method} {share:g}"] = study.errors(swept, method, percentile=share)
        elif method != DEFAULT_METHOD:
            found[method] = study.errors(swept, method)
    return found


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/latest"))
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--samples", type=int, default=300)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    with TemporaryDirectory() as folder:
        study = Study(
            checkpoint, arguments.width, arguments.target, arguments.samples, Path(folder)
        )
        found = measure(study, arguments.images)
    title = f"{study.data.name}, width {arguments.width:g}: error of logits in %, clean/adversarial"
    table = plain_table(title, ["calibrated on", *[f"λ={lam:g}" for lam in study.knots], "agree"])
    for name, one in found.items():
        cells, agree = [], []
        for lam in study.knots:
            both = [one[f"{lam:g} {kind}"] for kind in KINDS]
            cells.append("/".join(f"{100 * each['relative_error']:.1f}" for each in both))
            agree += [each["agreement"] for each in both]
        table.add_row(name, *cells, f"{100 * np.mean(agree):.1f}")
    console.print(table)
    save(
        f"calibration-{study.data.name}-w{arguments.width:.2f}-{arguments.target}",
        {
            "settings": {**vars(arguments), "checkpoint": checkpoint.run, **study.attack},
            "found": found,
        },
    )


if __name__ == "__main__":
    main()
