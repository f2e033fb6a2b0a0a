"""From a float32 file to an int8 one that keeps its accuracy: calibrate, quantise, check.

What int8 costs is measured (`drop`). If that is more than allowed, layers go back to float32, the
one that hurts most alone first, until it is not, or half of them would have to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oat_edge.calib.batches import CalibrationSet, make_batches
from oat_edge.calib.cache import cached_ranges
from oat_edge.calib.check_images import Attackable, check_split, spread_mask
from oat_edge.calib.config import QuantizeConfig
from oat_edge.calib.drop import Changes, DropCheck, check_enough
from oat_edge.calib.ranges import Ranges
from oat_edge.data.dataset import Dataset
from oat_edge.errors import GateError
from oat_edge.runtime.ort import OrtRunner
from oat_edge.runtime.runner import Runner, RunnerIO

if TYPE_CHECKING:
    from oat_edge.nn.fold import FoldedNetwork

Say = Callable[..., None]
# Samples of each λ that tell how much a layer hurts.
SENSITIVITY_SAMPLES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Attack:
    """PGD as the network was trained with it."""

    eps: float
    steps: int
    alpha: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """An int8 model and what is known of it."""

    model: Any
    """onnx.ModelProto."""
    calibration: CalibrationSet
    config: QuantizeConfig
    kept: tuple[str, ...]
    """Layers that compute in float32."""
    num_layers: int
    changes: Changes | None
    """What it costs; None: not measured."""
    sensitivity: dict[str, float] = field(default_factory=dict)
    """By layer, the relative error of the logits if it alone is int8; empty if nobody asked."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for the manifest."""
        return {
            "images": self.calibration.to_json(),
            "method": self.config.method,
            "max_drop": self.config.max_drop,
            "kept_in_float32": list(self.kept),
            "num_layers": self.num_layers,
            "accuracy": None if self.changes is None else self.changes.to_json(),
            "sensitivity": self.sensitivity,
        }


def quantize(
    model: Any,
    folded: FoldedNetwork,
    dataset: Dataset,
    io: RunnerIO,
    config: QuantizeConfig,
    *,
    attack: Attack,
    folder: Path,
    seed: int = 0,
    say: Say = lambda text, share=0.0: None,
) -> Quantized:
    """Quantise a float32 ONNX model of the width of `folded`, λ as an input or pinned.

    folder: for files that come and go. Images of the test split are never looked at.
    Raises `GateError` if int8 costs more than `config.max_drop`, `BuildError`, `InputError`.
    """
    work = _Work(model, folded, dataset, io, config, attack, folder, seed, say)
    return work.run()


class _Work:
    """The state of one quantisation."""

    def __init__(
        self,
        model: Any,
        folded: FoldedNetwork,
        dataset: Dataset,
        io: RunnerIO,
        config: QuantizeConfig,
        attack: Attack,
        folder: Path,
        seed: int,
        say: Say,
    ) -> None:
        from oat_edge.exporters.int8 import kept_by_default, prepare, quantizable

        self.folded, self.io, self.config, self.attack = folded, io, config, attack
        self.dataset, self.folder, self.seed, self.say = dataset, folder, seed, say
        self.model = prepare(model, target=config.target)
        ends = kept_by_default(self.model, target=config.target)
        self.ends = tuple(name for name in quantizable(self.model) if name in ends)
        self.layers = tuple(name for name in quantizable(self.model) if name not in ends)
        self.lambdas = io.lambdas if io.pinned_lambda is None else (io.pinned_lambda,)

    def run(self) -> Quantized:
        """Calibrate, quantise, and put layers back until the accuracy is kept."""
        if self.config.check_images:
            check_enough(self.config.check_images, len(self.lambdas))  # before minutes of work
        calibration = self._calibration()
        ranges = self._ranges(calibration)
        if not self.config.check_images:
            return self._result(calibration, self._int8(ranges), (), None, {})
        check = self._check(calibration)
        with self._open(self.model, "fp32") as fp32:

            def tried(kept: tuple[str, ...]) -> tuple[Any, Changes]:
                text = f"accuracy with {self._share(kept)} layers in float32"
                self.say(text)
                model = self._int8(ranges, kept)
                network = Attackable(model, self.io.pinned_lambda)
                with self._open(model, "int8") as int8:
                    return model, check.changes(
                        fp32, int8, network, lambda share: self.say(text, share)
                    )

            model, changes = tried(())
            failed = changes.beyond(self.config.max_drop)
            ranked: dict[str, float] = {}
            if self.config.sensitivity or failed:
                ranked = self._sensitivity(ranges, check, fp32)
            kept: tuple[str, ...] = ()
            if failed:
                kept, model, changes = self._keep(tuple(ranked), tried)
        return self._result(calibration, model, kept, changes, ranked)

    @property
    def _num_layers(self) -> int:
        """All, also those at the ends that are never quantised."""
        return len(self.layers) + len(self.ends)

    def _share(self, kept: tuple[str, ...]) -> str:
        """ "3 of 10": of all layers, as the manifest counts them."""
        return f"{len(kept) + len(self.ends)} of {self._num_layers}"

    def _result(
        self,
        calibration: CalibrationSet,
        model: Any,
        kept: tuple[str, ...],
        changes: Changes | None,
        sensitivity: dict[str, float],
    ) -> Quantized:
        return Quantized(
            model=model,
            calibration=calibration,
            config=self.config,
            kept=(*self.ends, *kept),
            num_layers=self._num_layers,
            changes=changes,
            sensitivity=sensitivity,
        )

    def _calibration(self) -> CalibrationSet:
        text = f"calibration images at {len(self.lambdas)} λ"
        self.say(text)
        return make_batches(
            self.folded,
            self.dataset.train,
            lambdas=self.config.lambdas or self.lambdas,
            eps=self.attack.eps,
            attack_steps=self.attack.steps,
            attack_alpha=self.attack.alpha,
            num_images=self.config.num_images,
            seed=self.seed,
            progress=lambda share: self.say(text, share),
        )

    def _ranges(self, calibration: CalibrationSet) -> Ranges:
        from oat_edge.exporters.int8 import activations

        text = f"ranges of activations, {self.config.method}"
        self.say(text)
        return cached_ranges(
            self.model,
            activations(self.model, target=self.config.target),
            calibration,
            method=self.config.method,
            symmetric=self.config.target == "trt",
            progress=lambda share: self.say(text, share),
            say=self.say,
        )

    def _check(self, calibration: CalibrationSet) -> DropCheck:
        text = f"images to check the accuracy with at {len(self.lambdas)} λ"
        self.say(text)
        return DropCheck(
            self.folded,
            check_split(self.dataset, calibration, self.config.check_images),
            lambdas=self.lambdas,
            num_images=self.config.check_images,
            eps=self.attack.eps,
            attack_steps=self.attack.steps,
            attack_alpha=self.attack.alpha,
            progress=lambda share: self.say(text, share),
        )

    def _keep(
        self,
        ranked: tuple[str, ...],
        tried: Callable[[tuple[str, ...]], tuple[Any, Changes]],
    ) -> tuple[tuple[str, ...], Any, Changes]:
        """The fewest layers, by rank, that in float32 keep the accuracy."""
        most = len(self.layers) // 2
        too_few, enough = 0, 1
        while True:
            enough = min(enough, most)
            model, changes = tried(ranked[:enough])
            failed = changes.beyond(self.config.max_drop)
            if not failed:
                break
            if enough >= most:
                raise self._too_much(failed, changes, ranked[:enough])
            too_few, enough = enough, 2 * enough
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            found = tried(ranked[:middle])
            if found[1].beyond(self.config.max_drop):
                too_few = middle
            else:
                enough, (model, changes) = middle, found
        return ranked[:enough], model, changes

    def _too_much(
        self, failed: tuple[float, str, float], changes: Changes, kept: tuple[str, ...]
    ) -> GateError:
        points, name, lam = failed
        verb = "costs" if points > 0 else "seems to add"
        return GateError(
            f"int8 {verb} {abs(points):.2f} points of {name} at λ={lam:g} (on {changes.num_images} "
            f"images) even with {self._share(kept)} layers in float32 (the worst), allowed "
            f"are {self.config.max_drop:g}: nothing was added to the bundle; try --calib-method, "
            "more --calib-samples, a larger --max-drop, or fp16"
        )

    def _sensitivity(self, ranges: Ranges, check: DropCheck, fp32: Runner) -> dict[str, float]:
        """By layer, worst first: relative error of the logits with it alone in int8."""
        samples = [
            next(one.take(spread_mask(len(one), SENSITIVITY_SAMPLES)).batches())
            for one in (*check.clean, *check.attacked)
        ]

        def logits(runner: Runner) -> Any:
            pinned = self.io.pinned_lambda is not None
            rows = [runner.infer(one.image, None if pinned else one.lam) for one in samples]
            return np.concatenate(rows)

        expected = logits(fp32)
        errors = {}
        for place, layer in enumerate(self.layers):
            self.say("what each layer costs alone", place / len(self.layers))
            others = tuple(name for name in self.layers if name != layer)
            with self._open(self._int8(ranges, others), "int8") as int8:
                difference = logits(int8) - expected
            errors[layer] = float(np.linalg.norm(difference) / np.linalg.norm(expected))
        return dict(sorted(errors.items(), key=lambda item: -item[1]))

    def _int8(self, ranges: Ranges, kept: tuple[str, ...] = ()) -> Any:
        from oat_edge.exporters.int8 import insert_qdq

        return insert_qdq(
            self.model, ranges, target=self.config.target, keep=frozenset(kept).union(self.ends)
        )

    def _open(self, model: Any, precision: str) -> Runner:
        path = self.folder / "candidate.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            return OrtRunner(path, self.io, precision=precision)
        finally:
            path.unlink()
