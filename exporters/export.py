"""From a checkpoint to a bundle: fold, export, check parity, make the attack packs, list."""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

import numpy as np

from oat_edge.bundle import Artifact, Bundle, add_artifacts, check_same_checkpoint
from oat_edge.config import check_range
from oat_edge.errors import InputError
from oat_edge.evaluation.pack import AttackPack, chosen_indices
from oat_edge.exporters import EXPORTERS
from oat_edge.files import exclusive_lock, sha256_file

if TYPE_CHECKING:
    from oat_edge.data import Dataset
    from oat_edge.nn.fold import FoldedNetwork
    from oat_edge.train.checkpoint import Checkpoint


# What a pack can hold; keys of oat_edge.attacks.stages.ATTACKS, known without torch.
PACK_ATTACKS = ("pgd20", "apgd", "autoattack")
STAGING = ".export-"
STALE_AFTER_S = 24 * 3600.0


class Say(Protocol):
    """Told what is being done, and again with the share of it in (0, 1] where it takes long."""

    def __call__(self, text: str, share: float = 0.0) -> None: ...  # noqa: D102


def _silent(text: str, share: float = 0.0) -> None:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """What goes into a bundle."""

    widths: tuple[float, ...]
    format: str = "onnx"
    """Name in `EXPORTERS`."""
    pin_lambda: float | None = None
    """Export with this λ folded into the weights instead of λ as an input."""
    floor: bool = True
    """Beside each λ-input file, its twin pinned at the largest λ: bench measures what λ costs."""
    attack_samples: int = 500
    """Test images that are attacked at every knot for the attack pack, all if there are fewer;
    0 makes none."""
    attack: str = "pgd20"
    """One of `PACK_ATTACKS`."""
    seed: int = 0
    """Draws the attacked images and the attack's random start."""
    replace: bool = False
    """Take artifacts of another checkpoint out of the bundle."""

    def __post_init__(self) -> None:
        if self.format not in EXPORTERS:
            raise InputError(
                f"format is '{self.format}': this version exports {', '.join(EXPORTERS)}"
            )
        if self.pin_lambda is not None:
            check_range("pin_lambda", self.pin_lambda, 0.0, 1.0)
        if not self.widths:
            raise InputError("widths are empty: expected one or more")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}: expected a whole number in [0, 2^63)")
        if self.attack not in PACK_ATTACKS:
            raise InputError(f"attack is '{self.attack}': expected {', '.join(PACK_ATTACKS)}")
        if self.attack_samples < 0:
            raise InputError(f"attack_samples is {self.attack_samples}: expected 0 or more")

    def pins(self, knots: tuple[float, ...]) -> tuple[float | None, ...]:
        """What to export of each width: None is the λ-input file."""
        if self.pin_lambda is not None:
            return (self.pin_lambda,)
        return (None, knots[-1]) if self.floor else (None,)


def export_bundle(
    checkpoint: Checkpoint,
    config: ExportConfig,
    out: Path,
    *,
    dataset: Dataset | None,
    say: Say = _silent,
) -> Bundle:
    """Export widths of a checkpoint into the bundle at `out`, and return it.

    dataset: needed for attack packs, and used for parity where it is there. say is told each
    step. Files are listed only after parity holds: `GateError` leaves the manifest as it was.
    """
    from oat_edge.nn.fold import fold

    if config.attack_samples and dataset is None:
        raise InputError("attack packs need the data set: give it, or --attack-samples 0")
    spec = checkpoint.spec
    _check_pin(config, spec.lambdas)
    _check_attack(config, spec.num_classes)
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
            for pinned_lambda in config.pins(spec.lambdas):
                kind = "λ input" if pinned_lambda is None else f"pinned at λ={pinned_lambda:g}"
                say(f"width {width:g}: {config.format}, {kind}")
                artifacts.append(
                    _export_checked(
                        checkpoint, config, folded, width, pinned_lambda, staging, dataset
                    )
                )
            if config.attack_samples:
                assert dataset is not None
                if _has_pack(old, checkpoint, config, width, dataset):
                    say(f"width {width:g}: attack pack is there already")
                    continue
                artifacts.append(
                    _export_pack(checkpoint, config, folded, width, staging, dataset, say)
                )
        return add_artifacts(
            out,
            artifacts,
            run=checkpoint.run,
            checkpoint_sha256=checkpoint.sha256,
            spec=spec,
            staging=staging,
            replace=config.replace,
        )


def _remove_stale_staging(out: Path) -> None:
    """Remove what exports left that were killed, at least a day ago."""
    for folder in out.glob(f"{STAGING}*"):
        if time.time() - folder.stat().st_mtime > STALE_AFTER_S:
            shutil.rmtree(folder, ignore_errors=True)


def _check_pin(config: ExportConfig, knots: tuple[float, ...]) -> None:
    if config.pin_lambda is not None and not knots[0] <= config.pin_lambda <= knots[-1]:
        raise InputError(f"pin_lambda is {config.pin_lambda:g}: this network has λ={knots[0]:g}")


def _check_attack(config: ExportConfig, num_classes: int) -> None:
    """Raise now what the attack would raise after minutes of exporting."""
    from oat_edge.attacks.autoattack import check_num_classes, implementation

    if config.attack_samples and config.attack != "pgd20":
        check_num_classes(num_classes)
        implementation()


def _export_checked(
    checkpoint: Checkpoint,
    config: ExportConfig,
    folded: FoldedNetwork,
    width: float,
    pinned_lambda: float | None,
    out: Path,
    dataset: Dataset | None,
) -> Artifact:
    from oat_edge.exporters.verify import check_parity
    from oat_edge.runtime.ort import OrtRunner
    from oat_edge.runtime.runner import RunnerIO

    module, _, function = EXPORTERS[config.format].partition(":")
    artifact: Artifact = getattr(import_module(module), function)(
        folded,
        checkpoint.spec,
        width=width,
        folder=out,
        checkpoint_sha256=checkpoint.sha256,
        pinned_lambda=pinned_lambda,
    )
    io = RunnerIO(
        image_shape=checkpoint.spec.image_shape,
        num_classes=checkpoint.spec.num_classes,
        lambdas=checkpoint.spec.lambdas,
        pinned_lambda=pinned_lambda,
    )
    images = _parity_images(checkpoint, dataset)
    with OrtRunner(out / artifact.file, io) as runner:
        parity = check_parity(checkpoint.network, width, runner, images)
        versions = artifact.versions | runner.versions
    return dataclasses.replace(artifact, parity=parity.to_json(), versions=versions)


def _parity_images(checkpoint: Checkpoint, dataset: Dataset | None) -> np.ndarray:
    """Sixteen real images where there are any, else noise: (16, C, H, W) float32."""
    if dataset is not None:
        images = dataset.test.images[:: max(1, len(dataset.test) // 16)][:16]
        return np.resize(images, (16, *images.shape[1:])).astype(np.float32) / np.float32(255)
    generator = np.random.default_rng(0)
    return generator.random((16, *checkpoint.spec.image_shape), dtype=np.float32)


def _export_pack(
    checkpoint: Checkpoint,
    config: ExportConfig,
    folded: FoldedNetwork,
    width: float,
    out: Path,
    dataset: Dataset,
    say: Say,
) -> Artifact:
    import torch

    from oat_edge.attacks.craft import craft_pack
    from oat_edge.exporters.to_onnx import in_name

    test, spec = dataset.test, checkpoint.spec
    if test.images.shape[1:] != spec.image_shape:
        raise InputError(
            f"the test images are {test.images.shape[1:]}, the network takes {spec.image_shape}"
        )
    indices = chosen_indices(len(test), config.attack_samples, config.seed)
    text = (
        f"width {width:g}: attack pack, {config.attack} on {len(indices)} images "
        f"at {len(spec.lambdas)} λ"
    )
    say(text)
    # Gradients are up to 1.5x faster in this layout.
    folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pack = craft_pack(
        folded,
        np.ascontiguousarray(test.images[indices]),
        test.labels[indices],
        indices,
        attack=config.attack,
        width=width,
        lambdas=spec.lambdas,
        num_classes=spec.num_classes,
        eps=spec.eps,
        checkpoint_sha256=checkpoint.sha256,
        seed=config.seed,
        progress=lambda share: say(text, share),
    )
    path = out / f"attacks-w{in_name(width)}-{pack.attack}.npz"
    pack.save(path)
    return Artifact(
        file=path.name,
        sha256=sha256_file(path),
        format="attacks",
        width=width,
        attack=pack.attack,
        precision_requested="uint8",
        precision_observed="uint8",
    )


def _has_pack(
    old: Bundle | None,
    checkpoint: Checkpoint,
    config: ExportConfig,
    width: float,
    dataset: Dataset,
) -> bool:
    """Whether the bundle holds the pack that would be made: same checkpoint, images and attack."""
    from oat_edge.attacks.craft import pack_settings

    if old is None or old.checkpoint_sha256 != checkpoint.sha256:
        return False
    spec = checkpoint.spec
    expected = pack_settings(config.attack, spec.eps, config.seed, spec.num_classes)
    indices = chosen_indices(len(dataset.test), config.attack_samples, config.seed)
    for artifact in old.of_format("attacks"):
        if artifact.width == width and artifact.attack == config.attack:
            try:
                pack = AttackPack.load(old.checked_path(artifact))
            except InputError:
                return False  # damaged: make it again
            same = pack.settings == expected and pack.eps == spec.eps
            return same and np.array_equal(pack.indices, indices)
    return False
