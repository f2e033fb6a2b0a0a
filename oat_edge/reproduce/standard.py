"""Standard accuracy on the whole test split: attacks are dear, a pass over all images is not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from oat_edge.evaluation.cells import CellStore
from oat_edge.evaluation.outcome import Bool
from oat_edge.operating_point import OperatingPoint

if TYPE_CHECKING:
    from torch import Tensor

    from oat_edge.data.dataset import Split
    from oat_edge.train.checkpoint import Checkpoint

CELLS, BATCH_SIZE = "standard", 250


def right_on_all(
    checkpoint: Checkpoint,
    test: Split,
    points: Iterable[OperatingPoint],
    folder: Path,
    *,
    device: str = "cpu",
) -> dict[OperatingPoint, Bool]:
    """Whether each image of the split is classified right: (M,) bool by operating point.

    folder: the run; what an earlier call found for the same checkpoint and images is used again.
    """
    import torch

    from oat_edge.attacks.stages import still_right
    from oat_edge.nn.fold import fold

    images = hashlib.sha256(test.images.tobytes() + test.labels.tobytes()).hexdigest()
    key = {"checkpoint_sha256": checkpoint.sha256, "images": images, "device": device}
    store = CellStore(folder / CELLS, key)
    network = checkpoint.network.to(device)
    x, y = torch.tensor(test.images, device=device), torch.tensor(test.labels, device=device)
    found: dict[OperatingPoint, Bool] = {}
    for point in points:
        cell = store.load(str(point))
        if cell is None:
            at_point = fold(network, point.width).at(torch.full((1,), point.lam, device=device))
            right = still_right(_of_levels(at_point), x, y, BATCH_SIZE)
            cell = {"right": right.cpu().numpy()}, {}
            store.save(str(point), *cell)
        found[point] = cell[0]["right"]
    return found


def _of_levels(logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same of images (N, C, H, W) uint8: a whole split as floats may not fit."""
    return lambda image: logits(image.float() / 255)
