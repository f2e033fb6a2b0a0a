from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.attacks.pgd import pgd, training_step_size, uniform_noise
from oat_edge.nn.fold import FoldedNetwork, fold
from tests.conftest import make_network


@pytest.fixture(scope="module")
def folded() -> FoldedNetwork:
    return fold(make_network(), 0.5)


def _attack(folded: FoldedNetwork, seed: int = 0, **settings: object) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(6, 1, 8, 8, generator=generator)
    y = torch.randint(0, 10, (6,), generator=generator)
    logits = folded.at(torch.linspace(0, 1, 6))
    values = {"eps": 8 / 255, "steps": 5, "alpha": 2 / 255} | settings
    noise = uniform_noise(x, values["eps"], generator)  # type: ignore[arg-type]
    x_adv = pgd(logits, x, y, noise=noise, **values)  # type: ignore[arg-type]
    return x, x_adv, F.cross_entropy(logits(x), y), F.cross_entropy(logits(x_adv), y)


@given(eps=st.floats(0, 1), alpha=st.floats(0, 2), steps=st.integers(0, 4), best=st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_result_lies_in_the_ball_and_the_pixel_range(
    folded: FoldedNetwork, eps: float, alpha: float, steps: int, best: bool
) -> None:
    x, x_adv, _, _ = _attack(folded, eps=eps, alpha=alpha, steps=steps, keep_best=best)
    assert x_adv.shape == x.shape
    assert not x_adv.requires_grad
    assert (x_adv - x).abs().max() <= eps + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_the_attack_raises_the_loss_and_more_steps_raise_it_further(folded: FoldedNetwork) -> None:
    _, _, clean, one = _attack(folded, steps=1, alpha=8 / 255)
    _, _, _, many = _attack(folded, steps=20, keep_best=True)
    assert clean < one < many


def test_keep_best_is_never_weaker(folded: FoldedNetwork) -> None:
    # With steps this long the last iterate is often not the best one.
    rough = {"steps": 10, "alpha": 16 / 255}
    last = [_attack(folded, seed=s, **rough)[3] for s in range(5)]
    best = [_attack(folded, seed=s, keep_best=True, **rough)[3] for s in range(5)]
    assert all(b >= a for a, b in zip(last, best, strict=True))
    assert sum(best) > sum(last)


def test_the_generator_decides_the_result(folded: FoldedNetwork) -> None:
    assert torch.equal(_attack(folded, seed=1)[1], _attack(folded, seed=1)[1])
    assert not torch.equal(_attack(folded, seed=1)[1], _attack(folded, seed=2)[1])


def test_step_size_is_the_authors() -> None:
    # facts/papers.md, sec. 1.1: 1.43/255 at eps 8/255 with 7 steps
    assert training_step_size(8 / 255, 7) * 255 == pytest.approx(10 / 7)
    assert training_step_size(64 / 255, 7) * 255 == pytest.approx(68 / 7)
