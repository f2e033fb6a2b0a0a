"""What several folders need: a small trained run and its bundle, made once."""

from __future__ import annotations

import os
import tempfile

# Before torch is imported, and for every child process: the networks here are tiny, and two
# threads that wait for each other on a busy machine take minutes.
os.environ["OMP_NUM_THREADS"] = "1"
# Tests take no turns with benches of this machine, and leave no record on it.
os.environ["OAT_EDGE_STATE_DIR"] = tempfile.mkdtemp(prefix="oat-edge-tests-")

import atexit
import dataclasses
import gc
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import oat_edge
from oat_edge.bundle import Bundle
from oat_edge.config import TrainConfig
from oat_edge.data import Dataset, load
from oat_edge.network_spec import NetworkSpec
from oat_edge.nn.network import OATSNetwork
from oat_edge.nn.zoo import build_network
from oat_edge.train.recipes import recipe
from tests.gpus import NO_GPU

# Tests hold on a busy machine too: none of them asserts a time.
settings.register_profile("oat-edge", deadline=None)
settings.load_profile("oat-edge")

atexit.register(shutil.rmtree, os.environ["OAT_EDGE_STATE_DIR"], ignore_errors=True)
# A suite that runs in the background has inherited that these are ignored, and so would children.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def tiny_config(**changes: object) -> TrainConfig:
    """Training on digits that takes about two seconds."""
    small = dataclasses.replace(
        recipe("digits"),
        epochs=2,
        train_samples=120,
        batch_size=60,
        attack_steps=2,
        widths=(0.5, 1.0),
        val_every=1,
        val_attack_samples=32,
    )
    return dataclasses.replace(small, **changes)  # type: ignore[arg-type]


def spec_of(
    arch: str = "resnet8", image_shape: tuple[int, int, int] = (1, 8, 8), **changes: object
) -> NetworkSpec:
    """The spec of `make_network` with the same arguments."""
    return NetworkSpec(
        arch=arch,
        class_names=tuple("0123456789"),
        image_shape=image_shape,
        eps=8 / 255,
        **changes,  # type: ignore[arg-type]
    )


def make_network(
    arch: str = "resnet8",
    image_shape: tuple[int, int, int] = (1, 8, 8),
    *,
    seed: int = 0,
    **changes: object,
) -> OATSNetwork:
    """A network in eval mode whose every weight and statistic differs from its first value."""
    network = build_network(spec_of(arch, image_shape, **changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * parameter.abs().mean().clamp(min=0.1) * noise)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0, generator=generator)
    return network.eval()


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits", train_samples=120)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """A run directory: resnet8 on 120 digits, two widths, two epochs. Do not change it."""
    from oat_edge.train.loop import Trainer

    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    Trainer(tiny_config(), digits, run_dir).train()
    return run_dir


@pytest.fixture(scope="session")
def tiny_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, digits: Dataset
) -> Bundle:
    """The run exported: both widths, λ-input and pinned, packs of 24 images. Do not change it."""
    from oat_edge.exporters.config import ExportConfig
    from oat_edge.exporters.export import export_bundle
    from oat_edge.train.checkpoint import load_checkpoint

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    config = ExportConfig(widths=(0.5, 1.0), attack_samples=24)
    return export_bundle(load_checkpoint(tiny_run), config, out, dataset=digits)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt digits, unlike `tiny_run`: one width, λ 0 and 1. Do not change it."""
    from oat_edge.train.loop import Trainer

    small = {"epochs": 4, "train_samples": 600, "batch_size": 40, "val_every": 4}
    config = tiny_config(widths=(1.0,), lambdas=(0.0, 1.0), eps=24 / 255, **small)
    run_dir = tmp_path_factory.mktemp("runs") / "trained"
    Trainer(config, load("digits", train_samples=600), run_dir).train()
    return run_dir


@pytest.fixture(scope="session")
def child_environment() -> dict[str, str]:
    """Environment in which a child process finds this oat_edge from any folder, on one thread."""
    root = str(Path(oat_edge.__file__).resolve().parents[1])
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def command(child_environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `oat-edge` with these arguments in the folder `cwd`, as a process of its own."""

    def run(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "oat_edge", *map(str, arguments)],
            cwd=cwd,
            env=child_environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="module")
def frozen_heap() -> Iterator[None]:
    """A bench collects garbage before each measurement: it need not walk through all of torch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def no_gpu() -> None:
    """For what a machine without a GPU says."""
    if NO_GPU is None:
        pytest.skip("this machine has a GPU")
