from __future__ import annotations

import numpy as np
import pytest

from oat_edge.evaluation.pack import AttackPack

CHECKPOINT = "c" * 64


@pytest.fixture
def make_pack():
    """Packs of the same images: `indices` chooses which, `attack` and `lambdas` the noise."""

    def make(attack="pgd20", *, indices=range(40), lambdas=(0.0, 0.3, 1.0), **changes):
        rng = np.random.default_rng(0)
        all_images = rng.integers(64, 192, (64, 1, 4, 4)).astype(np.uint8)
        all_labels = rng.integers(0, 3, 64)
        noise = np.random.default_rng([*attack.encode()]).integers(-64, 65, (11, 64, 1, 4, 4))
        places = np.array(list(indices), dtype=np.int64)
        images = all_images[places]
        adversarial = [images + noise[round(10 * lam)][places] for lam in lambdas]
        facts = {
            "attack": attack,
            "width": 0.5,
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
