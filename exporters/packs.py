"""Attack packs: adversarial test images, made white-box, that travel in the bundle.

Those of every width are made on its folded network. A quantised file gets one more, made on that
very file: what fools the network before quantisation need not be the worst for the one after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import InputError
from oat_edge.evaluation.config import GRAPH_ATTACK
from oat_edge.evaluation.pack import AttackPack, Int64, chosen_indices
from oat_edge.exporters.config import ExportConfig
from oat_edge.files import sha256_file
from oat_edge.runtime.engines import Say

if TYPE_CHECKING:
    from oat_edge.attacks.craft import Attackable
    from oat_edge.data import Dataset
    from oat_edge.nn.fold import FoldedNetwork
    from oat_edge.train.checkpoint import Checkpoint

# The attack that is made on quantised files; as pack it is called GRAPH_ATTACK.
GRAPH_BASE = "pgd20"


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
    making = _Making(checkpoint, config, width, dataset)
    return making.pack(folded, config.attack, config.attack, None, out, say)


def export_graph_pack(
    checkpoint: Checkpoint,
    config: ExportConfig,
    path: Path,
    width: float,
    out: Path,
    dataset: Dataset,
    say: Say,
) -> Artifact:
    """Attack the same images on the quantised ONNX file at `path`, which takes λ as an input.

    PGD-20 whatever `config.attack` is: a pack of the same attack on the network before
    quantisation is what it is compared with. Raises `BuildError` for a graph that torch cannot
    run, `InputError` for one with a pinned λ.
    """
    from oat_edge.nn.graph_network import GraphNetwork

    network = GraphNetwork.load(path)
    if not network.takes_lambda:
        raise InputError(f"{path.name} has its λ pinned: a pack needs the file with λ as an input")
    making = _Making(checkpoint, config, width, dataset)
    return making.pack(network, GRAPH_BASE, GRAPH_ATTACK, _crafted_on(path), out, say)


def has_pack(
    old: Bundle | None,
    checkpoint: Checkpoint,
    config: ExportConfig,
    width: float,
    dataset: Dataset,
) -> bool:
    """Whether the bundle holds the pack that would be made: same checkpoint, images and attack."""
    making = _Making(checkpoint, config, width, dataset)
    return making.is_in(old, config.attack, config.attack, None)


def has_graph_pack(
    old: Bundle | None,
    checkpoint: Checkpoint,
    config: ExportConfig,
    path: Path,
    width: float,
    dataset: Dataset,
) -> bool:
    """Whether the bundle holds the pack that `export_graph_pack` would make on this very file."""
    making = _Making(checkpoint, config, width, dataset)
    return making.is_in(old, GRAPH_BASE, GRAPH_ATTACK, _crafted_on(path))


def _crafted_on(path: Path) -> dict[str, str]:
    """Of a file that was quantised again nothing but the hash need differ."""
    return {
        "file": path.name,
        "sha256": sha256_file(path),
        "gradients": "straight through rounding, 0 where clipped",
    }


@dataclass(frozen=True, slots=True)
class _Making:
    """The packs of one width."""

    checkpoint: Checkpoint
    config: ExportConfig
    width: float
    dataset: Dataset

    def pack(
        self,
        network: Attackable,
        attack: str,
        name: str,
        crafted_on: dict[str, str] | None,
        out: Path,
        say: Say,
    ) -> Artifact:
        """Attack the images with `attack`, and call the pack `name`."""
        import torch

        from oat_edge.attacks.craft import craft_pack
        from oat_edge.exporters.to_onnx import in_name

        test, spec, indices = self.dataset.test, self.checkpoint.spec, self._indices()
        if test.images.shape[1:] != spec.image_shape:
            raise InputError(
                f"the test images are {test.images.shape[1:]}, the network takes {spec.image_shape}"
            )
        text = (
            f"width {self.width:g}: attack pack, {name} on {len(indices)} images "
            f"at {len(spec.lambdas)} λ"
        )
        say(text)
        assert isinstance(network, torch.nn.Module)
        # Gradients are up to 1.5x faster in this layout.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        pack = craft_pack(
            network,
            np.ascontiguousarray(test.images[indices]),
            test.labels[indices],
            indices,
            attack=attack,
            name=name,
            crafted_on=crafted_on,
            width=self.width,
            lambdas=spec.lambdas,
            num_classes=spec.num_classes,
            eps=spec.eps,
            checkpoint_sha256=self.checkpoint.sha256,
            seed=self.config.seed,
            progress=lambda share: say(text, share),
        )
        path = out / f"attacks-w{in_name(self.width)}-{name}.npz"
        pack.save(path)
        return Artifact(
            file=path.name,
            sha256=sha256_file(path),
            format="attacks",
            width=self.width,
            attack=name,
            precision_requested="uint8",
            precision_observed="uint8",
        )

    def is_in(
        self, old: Bundle | None, attack: str, name: str, crafted_on: dict[str, str] | None
    ) -> bool:
        """Whether `old` holds what `pack` would make."""
        from oat_edge.attacks.craft import pack_settings

        if old is None or old.checkpoint_sha256 != self.checkpoint.sha256:
            return False
        spec = self.checkpoint.spec
        expected = pack_settings(attack, spec.eps, self.config.seed, spec.num_classes, crafted_on)
        for artifact in old.of_format("attacks"):
            if artifact.width == self.width and artifact.attack == name:
                try:
                    pack = AttackPack.load(old.checked_path(artifact))
                except InputError:
                    return False  # damaged: make it again
                same = pack.settings == expected and pack.eps == spec.eps
                return same and np.array_equal(pack.indices, self._indices())
        return False

    def _indices(self) -> Int64:
        num, seed = self.config.attack_samples, self.config.seed
        return chosen_indices(len(self.dataset.test), num, seed)
