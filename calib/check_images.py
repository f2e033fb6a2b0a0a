"""What the gate of int8 looks at: its images, and the graph that they are attacked on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from oat_edge.calib.batches import STREAM, CalibrationSet
from oat_edge.calib.drop import SEED
from oat_edge.data.dataset import Dataset, Split
from oat_edge.data.splits import permutation

if TYPE_CHECKING:
    from torch import Tensor


class Attackable:
    """A graph that attacks can ask for any λ; one with λ pinned has its own at all of them."""

    def __init__(self, model: Any, pinned_lambda: float | None) -> None:
        from oat_edge.nn.graph_network import GraphNetwork

        self._graph, self._pinned = GraphNetwork(model), pinned_lambda is not None

    def at(self, lam: Tensor) -> Callable[[Tensor], Tensor]:
        """Images to logits at λ (N,)."""
        return self._graph.at(None if self._pinned else lam)

    def buffers(self) -> Iterator[Tensor]:
        """Those of the graph: they tell its device."""
        return self._graph.buffers()


def check_split(dataset: Dataset, calibration: CalibrationSet, num: int) -> Split:
    """The validation split, filled up to `num` with what calibration left of the training split.

    Images that were trained on are right with room to spare: they would hide what int8 costs.
    """
    missing = max(num - len(dataset.val), 0)
    left = np.setdiff1d(np.arange(len(dataset.train)), calibration.indices)
    rest = dataset.train.take(left[permutation(len(left), (SEED, STREAM))[:missing]])
    return Split(
        images=np.concatenate([dataset.val.images, rest.images]),
        labels=np.concatenate([dataset.val.labels, rest.labels]),
    )


def spread_mask(num: int, wanted: int) -> Any:
    """Mask (num,) of about `wanted` samples spread over all."""
    mask = np.zeros(num, dtype=bool)
    mask[np.linspace(0, num - 1, min(num, wanted)).round().astype(int)] = True
    return mask
