"""Whether this machine has a GPU; tests that need one, or none, skip with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from oat_edge.errors import DependencyError
from oat_edge.runtime.cuda import gpu


def _reason() -> str | None:
    try:
        gpu()
    except DependencyError as error:
        return str(error)
    return None


NO_GPU = _reason()
"""Why there is none; None where there is one."""
without_gpu = pytest.mark.skipif(NO_GPU is None, reason="this machine has a GPU")


def on_gpu(test: Callable[..., Any]) -> Any:
    """Mark a test that runs with `-m gpu` only."""
    return pytest.mark.gpu(pytest.mark.skipif(NO_GPU is not None, reason=f"no GPU: {NO_GPU}")(test))


def need_cuda_provider() -> None:
    """Skip where ONNX Runtime could not use a GPU, with the reason."""
    import onnxruntime

    if NO_GPU is not None:
        pytest.skip(f"no GPU: {NO_GPU}")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider: pip install 'oat-edge[gpu]'")
