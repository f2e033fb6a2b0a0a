from __future__ import annotations

from pathlib import Path

import pytest

from oat_edge.exporters.to_onnx import export
from oat_edge.nn.fold import fold
from oat_edge.runtime.runner import RunnerIO
from oat_edge.runtime.trt_api import Library, load
from tests.conftest import make_network, spec_of
from tests.packages import need_rtx


@pytest.fixture(scope="session")
def dedicated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunnerIO]:
    """A network with the single knot λ = 0.3, and what its runner takes."""
    folder = tmp_path_factory.mktemp("dedicated")
    options = {"lambdas": (0.3,), "widths": (1.0,)}
    network, spec = make_network(**options), spec_of(**options)
    artifact = export(
        fold(network, 1.0), spec, width=1.0, folder=folder, checkpoint_sha256="c" * 64
    )
    io = RunnerIO(image_shape=spec.image_shape, num_classes=10, lambdas=spec.lambdas)
    return folder / artifact.file, io


@pytest.fixture(scope="session")
def rtx() -> Library:
    """The real TensorRT-RTX."""
    need_rtx()
    return load("trt-rtx")
