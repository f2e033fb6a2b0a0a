"""Attack packs: adversarial test images, made white-box, that travel in the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import InputError
from oat_edge.evaluation.pack import AttackPack, chosen_indices
from oat_edge.exporters.config import ExportConfig
from oat_edge.files import sha256_file
from oat_edge.runtime.engines import Say

if TYPE_CHECKING:
    from oat_edge.data import Dataset
    from oat_edge.nn.fold import FoldedNetwork
    from oat_edge.train.checkpoint import Checkpoint


def check_attack(config: ExportConfig, num_classes: int) -> None:
    """Raise now what the attack would raise after minutes of exporting."""
    from oat_edge.attacks.autoattack import check_num_classes, implementation

    if config.attack_samples and config.attack != "pgd20":
        check_num_classes(num_classes)
        implementation()


def export_pack(
    checkpoint: Checkpoint,
    config: ExportConfig,
    folded: FoldedNetwork,
    width: float,
    out: Path,
    dataset: Dataset,
    say: Say,
) -> Artifact:
    """Attack test images at every knot of one width."""
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


def has_pack(
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
