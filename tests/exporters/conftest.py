from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from oat_edge.bundle import Bundle
from oat_edge.exporters.config import ExportConfig
from oat_edge.exporters.export import export_bundle
from oat_edge.exporters.to_tensorrt import BuiltEngine, build_engine
from oat_edge.runtime.recipe import Recipe
from oat_edge.runtime.trt_api import Library, load
from oat_edge.train.checkpoint import Checkpoint
from tests.conftest import make_network, spec_of


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Checkpoint]:
    """An untrained checkpoint whose every weight and statistic differs from its first value."""

    def make(*arguments: object, **options: object) -> Checkpoint:
        network = make_network(*arguments, **options)  # type: ignore[arg-type]
        options.pop("seed", None)
        spec = spec_of(*arguments, **options)  # type: ignore[arg-type]
        return Checkpoint(network, spec, {}, "run", "c" * 64)

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    """resnet8 with three widths and the paper's knots. Do not change it."""
    return make_checkpoint()


@pytest.fixture(scope="session")
def another(checkpoint: Checkpoint) -> Checkpoint:
    """The same network under another hash."""
    return dataclasses.replace(checkpoint, sha256="d" * 64, run="another")


@pytest.fixture(scope="session")
def half_bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The λ-input file of width 0.5 alone. Do not change it."""
    config = ExportConfig(widths=(0.5,), floor=False, attack_samples=0)
    out = tmp_path_factory.mktemp("half") / "half"
    return export_bundle(checkpoint, config, out, dataset=None)


@pytest.fixture(scope="module")
def library() -> Library:
    """The real TensorRT-RTX."""
    return load("trt-rtx")


@pytest.fixture
def build(library: Library, tmp_path: Path) -> Callable[..., BuiltEngine]:
    """Build with a log at tmp_path/build.log."""

    def build(content, precision="fp32", *, progress=lambda share: None, cache=b"", **options):
        recipe = Recipe(format="trt-rtx", precision=precision, **options)
        log = tmp_path / "build.log"
        return build_engine(
            content, recipe, library, timing_cache=cache, log=log, progress=progress
        )

    return build
