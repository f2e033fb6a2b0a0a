"""A folded PyTorch network as a runner: the reference that other back ends are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oat_edge.require import require
from oat_edge.runtime.runner import Float32, Runner, RunnerIO

if TYPE_CHECKING:
    from oat_edge.nn.fold import FoldedNetwork


class TorchRunner(Runner):
    """One width of a network, on the device where it lies."""

    def __init__(self, folded: FoldedNetwork, io: RunnerIO) -> None:
        torch = require("torch", purpose="running a PyTorch network")
        self._torch = torch
        self._folded = folded
        self._device = folded.scale_table.device
        self.io = io
        self.backend = f"torch-{self._device.type}"
        self.device = str(self._device)
        self.precision = "fp32"
        self.versions = {"torch": torch.__version__}

    def _run(self, image: Float32, lam: Float32) -> Float32:
        torch = self._torch
        with torch.inference_mode():
            x = torch.from_numpy(image).to(self._device)
            logits = self._folded(x, torch.from_numpy(lam).to(self._device))
        out: Float32 = logits.cpu().numpy()
        return out
