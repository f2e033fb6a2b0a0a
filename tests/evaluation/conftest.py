from __future__ import annotations

import numpy as np
import pytest

from oat_edge.evaluation.pack import AttackPack
from oat_edge.evaluation.pack_set import PackSet
from oat_edge.runtime.runner import Runner, RunnerIO
from oat_edge.train.checkpoint import load_checkpoint
from tests.bench.conftest import make_bundle
from tests.evaluation.networks import evaluate
from tests.toy import Toy

CHECKPOINT = "c" * 64


@pytest.fixture(scope="session")
def trained(tiny_run):
    """The checkpoint of `tiny_bundle`."""
    return load_checkpoint(tiny_run)


@pytest.fixture
def make_pack():
    """Packs of the same images: `indices` chooses which, `attack`, width and λ the noise."""

    def make(attack="pgd20", *, width=0.5, indices=range(40), lambdas=(0.0, 0.3, 1.0), **changes):
        rng = np.random.default_rng(0)
        all_images = rng.integers(64, 192, (64, 1, 4, 4)).astype(np.uint8)
        all_labels = rng.integers(0, 3, 64)
        seed = [*attack.encode(), round(100 * width)]
        noise = np.random.default_rng(seed).integers(-64, 65, (11, 64, 1, 4, 4))
        places = np.array(list(indices), dtype=np.int64)
        images = all_images[places]
        adversarial = [images + noise[round(10 * lam)][places] for lam in lambdas]
        facts = {
            "attack": attack,
            "width": width,
            "lambdas": tuple(lambdas),
            "eps": 64 / 255,
            "checkpoint_sha256": CHECKPOINT,
            "indices": places,
            "labels": all_labels[places],
            "images": images,
            "adversarial": np.array(adversarial).astype(np.uint8),
        }
        return AttackPack(**{**facts, **changes})

    return make


@pytest.fixture
def pack_set():
    return lambda *packs, **options: PackSet(packs, checkpoint_sha256=CHECKPOINT, **options)


class LinearRunner(Runner):
    """logits = image @ W + λ·v, in numpy; remembers the batches it got."""

    def __init__(self):
        self.io = RunnerIO(image_shape=(1, 4, 4), num_classes=3, lambdas=(0.0, 0.3, 1.0))
        rng = np.random.default_rng(1)
        self.weight = rng.normal(size=(16, 3)).astype(np.float32)
        self.shift = 2 * rng.normal(size=3).astype(np.float32)
        self.batches = []

    def _run(self, image, lam):
        self.batches.append((image, lam))
        return image.reshape(len(image), -1) @ self.weight + lam[:, None] * self.shift

    def at(self, lam):
        return lambda image: self.infer(image, lam)


@pytest.fixture
def linear():
    return LinearRunner()


@pytest.fixture
def bundle(tmp_path):
    """Width 0.5 with PGD-20 and APGD packs and a file pinned at 0.3; width 1 with PGD-20."""
    return make_bundle(tmp_path / "b")


@pytest.fixture
def passes(monkeypatch):
    """Every pass through the network, as its number of images; `fold` gives the toy."""
    made: list[int] = []
    import oat_edge.nn.fold

    monkeypatch.setattr(
        oat_edge.nn.fold, "fold", lambda network, width: Toy(width, passes=made)
    )  # fmt: skip
    return made


@pytest.fixture
def whole(passes, tmp_path):
    return evaluate(tmp_path / "whole")
