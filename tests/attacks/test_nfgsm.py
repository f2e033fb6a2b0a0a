from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.attacks.nfgsm import NOISE, n_fgsm
from oat_edge.nn.fold import fold
from tests.conftest import make_network


@given(eps=st.floats(0, 0.3), seed=st.integers(0, 1000))
def test_images_stay_pixels_and_within_noise_and_step(eps: float, seed: int) -> None:
    x = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    w = torch.randn(9, 3, generator=torch.Generator().manual_seed(seed + 1))
    y = torch.tensor([0, 1, 2, 0])
    generator = torch.Generator().manual_seed(seed)
    x_adv = n_fgsm(lambda image: image.flatten(1) @ w, x, y, eps=eps, generator=generator)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert (x_adv - x).abs().max() <= (NOISE + 1) * eps + 1e-6
    assert not x_adv.requires_grad


def test_one_whole_step_along_the_sign_from_the_noisy_image_and_no_projection() -> None:
    """Two classes with logits (0, w·x): the loss of class 0 grows along sign(w)."""
    eps, x = 0.05, torch.full((2, 1, 4, 4), 0.5)
    w = torch.randn(16, generator=torch.Generator().manual_seed(0))

    def logits(image: torch.Tensor) -> torch.Tensor:
        score = image.flatten(1) @ w
        return torch.stack([torch.zeros_like(score), score], dim=1)

    labels = torch.tensor([0, 1])
    x_adv = n_fgsm(logits, x, labels, eps=eps, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    noise = torch.empty(x.shape).uniform_(-2 * eps, 2 * eps, generator=generator)
    direction = torch.stack([w.sign(), -w.sign()]).view_as(x)
    torch.testing.assert_close(x_adv, x + noise + eps * direction)
    assert (x_adv - x).abs().max() > eps


def test_probabilities_serve_as_labels_do() -> None:
    logits = fold(make_network(), 0.5).at(torch.tensor([1.0]))
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    soft = torch.nn.functional.one_hot(y, 10).float()
    hard, same = (
        n_fgsm(logits, x, t, eps=0.1, generator=torch.Generator().manual_seed(0)) for t in (y, soft)
    )
    torch.testing.assert_close(hard, same)
