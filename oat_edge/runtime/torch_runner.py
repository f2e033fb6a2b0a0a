"""A folded PyTorch network as a runner: the reference that other back ends are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oat_edge.require import require
from oat_edge.runtime.runner import Float32, Runner, RunnerIO

if TYPE_CHECKING:
    from torch import Tensor

    from oat_edge.nn.fold import FoldedNetwork


class TorchRunner(Runner):
    """One width of a network, on the device where it lies."""

    def __init__(self, folded: FoldedNetwork, io: RunnerIO) -> None:
        torch = require("torch", purpose="running a PyTorch network")
        self._torch: Any = torch
        self._folded = folded
        self._device = folded.table.device
        self.io = io
        self.backend = f"torch-{self._device.type}"
        self.device = str(self._device)
        self.precision = "fp32"
        self.versions = {"torch": torch.__version__}

    def _run(self, image: Float32, lam: Float32) -> Float32:
        with self._torch.inference_mode():
            logits = self._folded(self._tensor(image), self._tensor(lam))
        out: Float32 = logits.cpu().numpy()
        return out

    def _tensor(self, array: Float32) -> Tensor:
        # torch has no read-only tensors and warns of arrays that are.
        writable = array if array.flags.writeable else array.copy()
        tensor: Tensor = self._torch.from_numpy(writable).to(self._device)
        return tensor
