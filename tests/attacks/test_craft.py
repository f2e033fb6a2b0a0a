from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.attacks.craft import craft_pack, to_grid
from oat_edge.data import Dataset
from oat_edge.evaluation.pack import levels
from oat_edge.nn.fold import fold
from oat_edge.train.checkpoint import load_checkpoint


@given(
    eps=st.one_of(st.floats(0, 1), st.integers(0, 255).map(lambda k: k / 255)),
    pixels=st.lists(st.tuples(st.integers(0, 255), st.floats(-1, 1)), min_size=1),
)
def test_grid_images_stay_in_the_ball_in_integers(
    eps: float, pixels: list[tuple[int, float]]
) -> None:
    x = torch.tensor([p for p, _ in pixels]).float() / 255
    x_adv = (x + eps * torch.tensor([d for _, d in pixels])).clamp(0, 1)
    grid = to_grid(x_adv, x, eps).to(torch.int64)
    original = torch.tensor([p for p, _ in pixels])
    assert (grid - original).abs().max() <= levels(eps)
    # And it is the nearest such image: within half a level unless the ball forbids it.
    allowed = (grid - original).abs() < levels(eps)
    assert ((grid - x_adv * 255).abs()[allowed] <= 0.5 + 1e-3).all()


def test_levels_of_fractions_are_exact() -> None:
    assert [levels(k / 255) for k in range(256)] == list(range(256))


def test_a_pack_fools_the_network_it_was_made_on(tiny_run: Path, digits: Dataset) -> None:
    folded = fold(load_checkpoint(tiny_run).network, 1.0)
    indices = np.arange(30, dtype=np.int64)
    images, labels = digits.test.images[:30], digits.test.labels[:30]
    sizes: list[int] = []
    pack = craft_pack(
        folded,
        images,
        labels,
        indices,
        width=1.0,
        lambdas=(0.0, 1.0),
        eps=32 / 255,
        checkpoint_sha256="0" * 64,
        seed=3,
        batch_size=12,
        progress=sizes.append,
    )
    assert sizes == [12, 12, 6] * 2
    assert pack.adversarial.shape == (2, 30, 1, 8, 8)
    for row, lam in enumerate(pack.lambdas):
        with torch.no_grad():
            logits = folded.at(torch.full((30,), lam))
            target = torch.from_numpy(labels)
            clean = logits(torch.from_numpy(images).float() / 255)
            attacked = logits(torch.from_numpy(pack.adversarial[row]).float() / 255)
            noise = 32 / 255 * torch.randn(30, 1, 8, 8).sign()
            noisy = logits((torch.from_numpy(images).float() / 255 + noise).clamp(0, 1))
        loss = torch.nn.functional.cross_entropy
        # White-box images do more than the same amount of noise.
        assert loss(attacked, target) > max(loss(clean, target), loss(noisy, target)) + 0.02
