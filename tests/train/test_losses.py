from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.train.losses import LossOptions, cross_entropy, oat, trades

seeds = st.integers(0, 1000)


def _samples(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean, adversarial = torch.randn(2, 9, 5, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, 5, (9,), generator=generator)
    return clean, adversarial, labels, torch.rand(9, generator=generator, dtype=torch.float64)


@given(seed=seeds)
def test_oat_is_the_mixture_of_its_paper(seed: int) -> None:
    clean, adversarial, labels, lam = _samples(seed)
    ce = [-logits.log_softmax(1)[torch.arange(9), labels] for logits in (clean, adversarial)]
    expected = ((1 - lam) * ce[0] + lam * ce[1]).sum()
    torch.testing.assert_close(sum(oat(clean, adversarial, labels, lam, LossOptions())), expected)


@given(seed=seeds, beta=st.floats(0, 10))
def test_lambda_on_beta_is_oats_mixture_with_trades_as_its_robust_part(
    seed: int, beta: float
) -> None:
    clean, adversarial, labels, lam = _samples(seed)
    p, q = clean.softmax(1), adversarial.softmax(1)
    ce = F.cross_entropy(clean, labels, reduction="none")
    kl = (p * (p / q).log()).sum(1)
    expected = ((1 - lam) * ce + lam * (ce + beta * kl)).sum()
    options = LossOptions(trades_beta=beta)
    torch.testing.assert_close(sum(trades(clean, adversarial, labels, lam, options)), expected)


def test_trades_reaches_both_outputs_and_costs_nothing_where_they_agree() -> None:
    clean, adversarial, labels, lam = _samples(0)
    clean.requires_grad_(), adversarial.requires_grad_()
    ce, kl = trades(clean, adversarial, labels, lam, LossOptions())
    for gradient in torch.autograd.grad(kl, [clean, adversarial], retain_graph=True):
        assert gradient.abs().sum() > 0
    _, none = trades(clean.detach(), clean.detach(), labels, lam, LossOptions())
    assert float(none) == pytest.approx(0, abs=1e-12)
    assert float(ce.detach()) > 0


@given(seed=seeds, smoothing=st.floats(0, 0.9))
def test_smoothing_spreads_a_label_and_leaves_a_teacher_alone(seed: int, smoothing: float) -> None:
    logits, _, labels, _ = _samples(seed)
    options = LossOptions(label_smoothing=smoothing)
    soft = (1 - smoothing) * F.one_hot(labels, 5).double() + smoothing / 5
    by_hand = -(soft * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(cross_entropy(logits, labels, options), by_hand)
    # Given as probabilities the same targets are not smoothed a second time.
    torch.testing.assert_close(cross_entropy(logits, soft, options), by_hand)
