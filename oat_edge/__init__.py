"""oat-edge: train, export and bench networks with two run-time knobs, λ and width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oat_edge.operating_point import OperatingPoint

if TYPE_CHECKING:
    from oat_edge.runtime import open_runner

__version__ = "0.1.0"
__all__ = ["OperatingPoint", "__version__", "open_runner"]


def __getattr__(name: str) -> Any:
    if name == "open_runner":
        from oat_edge.runtime import open_runner

        return open_runner
    raise AttributeError(name)
