"""From a checkpoint to a bundle: fold, export, check parity, build engines, attack, list."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from oat_edge.bundle import Artifact, Bundle, add_artifacts, check_same_checkpoint
from oat_edge.errors import DependencyError, InputError
from oat_edge.exporters.config import ExportConfig
from oat_edge.files import exclusive_lock, write_bytes
from oat_edge.runtime.cuda import gpu
from oat_edge.runtime.engines import Say, Target, build_target, keep_engine, silent
from oat_edge.runtime.runner import Float32, Runner, RunnerIO

if TYPE_CHECKING:
    from oat_edge.calib.config import QuantizeConfig
    from oat_edge.data import Dataset
    from oat_edge.nn.fold import FoldedNetwork
    from oat_edge.train.checkpoint import Checkpoint


STAGING = ".export-"
STALE_AFTER_S = 24 * 3600.0
ENGINE_SUFFIX = {"trt": ".engine", "trt-rtx": ".rtx.engine"}
# Images that parity is offered; it takes as many as its gate needs.
PARITY_IMAGES = 256


def export_bundle(
    checkpoint: Checkpoint,
    config: ExportConfig,
    out: Path,
    *,
    dataset: Dataset | None,
    say: Say = silent,
) -> Bundle:
    """Export widths of a checkpoint into the bundle at `out`, and return it.

    dataset: needed for attack packs, and used for parity where it is there. say is told each
    step. Files are listed only after parity holds: `GateError` leaves the manifest as it was.
    Raises `DependencyError` if engines are wanted now and cannot be built here.
    """
    from oat_edge.exporters.packs import check_attack
    from oat_edge.nn.fold import fold

    if config.quantize is not None and dataset is None:
        raise InputError("int8 needs images to calibrate with: give the data set")
    if config.attack_samples and dataset is None:
        raise InputError("attack packs need the data set: give it, or --attack-samples 0")
    spec = checkpoint.spec
    _check_pin(config, spec.lambdas)
    check_attack(config, spec.num_classes)
    target = _target(config, say)
    with exclusive_lock(out):
        # Files of another checkpoint are named before any work is done for nothing.
        old = check_same_checkpoint(out, checkpoint.sha256, replace=config.replace)
        _remove_stale_staging(out)
    # Checked first, moved in together: a failure leaves the bundle as it was.
    with TemporaryDirectory(prefix=STAGING, dir=out) as folder:
        staging = Path(folder)
        artifacts: list[Artifact] = []
        for width in config.widths:
            folded = fold(checkpoint.network, width)
            first = len(artifacts)  # where the file with λ as an input goes, if there is one
            for pinned_lambda in config.pins(spec.lambdas):
                one = _One(checkpoint, config, width, pinned_lambda, staging, dataset)
                artifacts.append(one.onnx(folded, say))
                if config.recipe is not None:
                    artifacts.append(one.engine(artifacts[-1], target, say))
            if config.attack_samples:
                assert dataset is not None
                making = _Packs(checkpoint, config, width, staging, dataset, old)
                artifacts += making.on_network(folded, say)
                if config.quantize is not None and config.pin_lambda is None:
                    artifacts += making.on_file(staging / artifacts[first].file, say)
        return add_artifacts(
            out,
            artifacts,
            run=checkpoint.run,
            checkpoint_sha256=checkpoint.sha256,
            spec=spec,
            staging=staging,
            replace=config.replace,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _One:
    """One network of an export: a width, with λ as an input or pinned."""

    checkpoint: Checkpoint
    config: ExportConfig
    width: float
    pinned_lambda: float | None
    staging: Path
    dataset: Dataset | None

    def onnx(self, folded: FoldedNetwork, say: Say) -> Artifact:
        """Its ONNX file, checked against PyTorch."""
        from oat_edge.exporters.to_onnx import export
        from oat_edge.runtime.ort import OrtRunner

        say(self._text(f"onnx, {self.config.precision}"))
        if self.config.quantize is not None:
            artifact = self._quantized(folded, self.config.quantize, say)
        else:
            precision = self.config.precision
            artifact = export(folded, self.checkpoint.spec, precision=precision, **self._facts())
        path = self.staging / artifact.file
        with OrtRunner(path, self._io(), precision=self.config.precision) as runner:
            return self._checked(artifact, runner, None)

    def _quantized(self, folded: FoldedNetwork, config: QuantizeConfig, say: Say) -> Artifact:
        from oat_edge.calib.quantize import Attack, quantize
        from oat_edge.exporters.int8_kernels import check_kernels
        from oat_edge.exporters.to_onnx import save, trace

        assert self.dataset is not None
        spec, train = self.checkpoint.spec, self.checkpoint.info["train"]
        found = quantize(
            trace(folded, spec, self.pinned_lambda),
            folded,
            self.dataset,
            self._io(),
            config,
            attack=Attack(eps=spec.eps, steps=train["attack_steps"], alpha=train["attack_alpha"]),
            folder=self.staging,
            seed=self.config.seed,
            say=lambda text, share=0.0: say(self._text(f"int8, {text}"), share),
        )
        artifact = save(
            found.model,
            spec,
            precision="int8",
            target=config.target,
            calibration=found.to_json(),
            **self._facts(),
        )
        if config.target == "cpu":
            in_int8 = found.num_layers - len(found.kept)
            check_kernels(self.staging / artifact.file, num_layers=in_int8)
        return artifact

    def _facts(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "folder": self.staging,
            "checkpoint_sha256": self.checkpoint.sha256,
            "pinned_lambda": self.pinned_lambda,
        }

    def _text(self, what: str) -> str:
        kind = "λ input" if self.pinned_lambda is None else f"pinned at λ={self.pinned_lambda:g}"
        return f"width {self.width:g}: {what}, {kind}"

    def engine(self, onnx: Artifact, target: Target | None, say: Say) -> Artifact:
        """Its engine, built now, or deferred to the device where `target` is None."""
        recipe = self.config.recipe
        assert recipe is not None
        name = onnx.file.removesuffix(".onnx") + ENGINE_SUFFIX[recipe.format]
        artifact = dataclasses.replace(
            onnx,
            file=name,
            sha256="",
            format=recipe.format,
            precision_observed=None,
            source=onnx.file,
            recipe=recipe.to_json(),
            deferred=True,
            parity=None,
        )
        if target is None:
            return artifact
        kept = keep_engine(self.staging / onnx.file, recipe, target, say=say)
        write_bytes(self.staging / name, kept.path.read_bytes())
        artifact = dataclasses.replace(
            artifact,
            sha256=kept.sha256,
            precision_observed=kept.precision,
            typing=kept.typing,
            deferred=False,
            device_key=kept.device_key,
            versions={**onnx.versions, target.library.api.__name__: target.library.version},
        )
        try:
            gpu()
        except DependencyError:
            return artifact  # built ahead of time; nothing here can run it
        from oat_edge.runtime.trt import TrtRunner

        say(f"{name}: comparing it with PyTorch")
        with TrtRunner(
            self.staging / name,
            self._io(),
            recipe=recipe,
            sha256=kept.sha256,
            typing=kept.typing,
        ) as runner:
            return self._checked(artifact, runner, recipe.batches)

    def _io(self) -> RunnerIO:
        return RunnerIO.of(self.checkpoint.spec, self.pinned_lambda)

    def _checked(
        self, artifact: Artifact, runner: Runner, batches: tuple[int, int, int] | None
    ) -> Artifact:
        from oat_edge.exporters.verify import check_parity

        network, images = self.checkpoint.network, self._images(PARITY_IMAGES)
        parity = check_parity(network, self.width, runner, images, batches=batches)
        versions = artifact.versions | runner.versions
        return dataclasses.replace(artifact, parity=parity.to_json(), versions=versions)

    def _images(self, num: int) -> Float32:
        """Real images where there are any, else noise: (num, C, H, W)."""
        if self.dataset is not None:
            test = self.dataset.test
            images = test.images[:: max(1, len(test) // num)][:num]
            return np.resize(images, (num, *images.shape[1:])).astype(np.float32) / np.float32(255)
        generator = np.random.default_rng(0)
        return generator.random((num, *self.checkpoint.spec.image_shape), dtype=np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class _Packs:
    """The attack packs of one width, but for those that the bundle holds already."""

    checkpoint: Checkpoint
    config: ExportConfig
    width: float
    staging: Path
    dataset: Dataset
    old: Bundle | None

    def on_network(self, folded: FoldedNetwork, say: Say) -> list[Artifact]:
        """White-box on the float32 network."""
        from oat_edge.exporters.packs import export_pack, has_pack

        if has_pack(self.old, self.checkpoint, self.config, self.width, self.dataset):
            say(f"width {self.width:g}: attack pack is there already")
            return []
        return [
            export_pack(
                self.checkpoint, self.config, folded, self.width, self.staging, self.dataset, say
            )
        ]

    def on_file(self, path: Path, say: Say) -> list[Artifact]:
        """White-box on the int8 file itself."""
        from oat_edge.exporters.packs import export_graph_pack, has_graph_pack

        if has_graph_pack(self.old, self.checkpoint, self.config, path, self.width, self.dataset):
            say(f"width {self.width:g}: attack pack of {path.name} is there already")
            return []
        return [
            export_graph_pack(
                self.checkpoint, self.config, path, self.width, self.staging, self.dataset, say
            )
        ]


def _target(config: ExportConfig, say: Say) -> Target | None:
    """Where the engines are built; None: on the device, later."""
    if config.recipe is None:
        return None
    try:
        return build_target(config.recipe.format)
    except DependencyError as missing:
        if not config.defer:
            raise
        reason = str(missing).partition(":")[0]
        say(
            f"engines are deferred ({reason}): `oat-edge bench --device cuda` on the target builds "
            "them once and keeps them there"
        )
        return None


def _remove_stale_staging(out: Path) -> None:
    """Remove what exports left that were killed, at least a day ago."""
    for folder in out.glob(f"{STAGING}*"):
        if time.time() - folder.stat().st_mtime > STALE_AFTER_S:
            shutil.rmtree(folder, ignore_errors=True)


def _check_pin(config: ExportConfig, knots: tuple[float, ...]) -> None:
    if config.pin_lambda is not None and not knots[0] <= config.pin_lambda <= knots[-1]:
        raise InputError(f"pin_lambda is {config.pin_lambda:g}: this network has λ={knots[0]:g}")
