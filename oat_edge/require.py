"""Late imports whose error says what to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from oat_edge.errors import DependencyError

# module -> the extra that brings it
EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "sklearn": "train",
    "scipy": "train",
    "pooch": "train",
    "PIL": "train",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "cpu",
    "tensorrt": "trt",
    "tensorrt_rtx": "trt-rtx",
    "pynvml": "nvml",
    "tomlkit": "remote",
    "matplotlib": "report",
    "pyautoattack": "attack",
}


def require(module: str, *, purpose: str) -> ModuleType:
    """Import `module`, or raise `DependencyError` that names the purpose and the extra to install.

    `module` may be dotted ("onnxruntime.quantization"). An error *inside* an installed package
    keeps its own text, so that a broken library is not reported as a missing one.
    """
    root = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = EXTRAS.get(root)
        hint = f"pip install 'oat-edge[{extra}]'" if extra else f"pip install {root}"
        missing = isinstance(error, ModuleNotFoundError) and error.name == root
        what = f"{root} is not installed" if missing else f"{root} does not import ({error})"
        raise DependencyError(f"{what}, but {purpose} needs it: {hint}") from error
