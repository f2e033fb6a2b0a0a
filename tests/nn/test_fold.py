"""Folding against the papers' network written out plainly (benchmarks/straightforward.py)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.straightforward import StraightforwardNetwork
from oat_edge.conditioning import PAPER_KNOTS
from oat_edge.errors import InputError
from oat_edge.nn.fold import PinnedNetwork, fold, refold
from oat_edge.nn.network import OATSNetwork
from tests.conftest import make_network

SHAPES = {"resnet8": (1, 8, 8), "wrn-10-1": (3, 16, 16), "mobilenet-v2": (3, 16, 16)}
Case = tuple[OATSNetwork, torch.Tensor]


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = SHAPES[request.param]
    images = torch.rand(8, *shape, generator=torch.Generator().manual_seed(7))
    return make_network(request.param, shape), images


@pytest.mark.parametrize("width", [0.5, 0.75, 1.0])
@torch.no_grad()
def test_folded_equals_the_papers_network_at_the_knots(case: Case, width: float) -> None:
    network, images = case
    plain = StraightforwardNetwork(network).eval()
    plain.width = width
    lam = torch.tensor([*PAPER_KNOTS, 0.0, 1.0])
    torch.testing.assert_close(
        fold(network, width)(images, lam), plain(images, lam), atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("width", [0.5, 0.75, 1.0])
@torch.no_grad()
def test_folded_equals_the_unfolded_network_at_any_lambda(case: Case, width: float) -> None:
    network, images = case
    lam = torch.tensor([0.0, 1e-6, 0.05, 0.15, 0.35, 0.6, 0.99, 1.0])
    torch.testing.assert_close(
        fold(network, width)(images, lam), network(images, lam, width), atol=2e-5, rtol=1e-5
    )


@given(lam=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=8))
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_mixed_lambda_equals_one_by_one(folded_resnet: Case, lam: list[float]) -> None:
    folded, images = folded_resnet
    lam_n = torch.tensor(lam)
    together = folded(images[: len(lam)], lam_n)
    alone = [folded(images[i : i + 1], lam_n[i : i + 1]) for i in range(len(lam))]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def folded_resnet() -> tuple[torch.nn.Module, torch.Tensor]:
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    return fold(make_network(), 0.75), images


@pytest.mark.parametrize("lam", [0.0, 0.05, 0.3, 0.7, 1.0])
@torch.no_grad()
def test_pinned_equals_lambda_input(case: Case, lam: float) -> None:
    network, images = case
    folded = fold(network, 0.5)
    expected = folded(images, torch.full((len(images),), lam))
    torch.testing.assert_close(PinnedNetwork(folded, lam)(images), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_branches_are_never_blended(case: Case) -> None:
    """λ = 0 sees nothing of the adversarial branch, the least λ above it nothing of the clean."""
    network, images = case
    lam = torch.tensor([0.0, 1e-6] * 4)
    before = fold(network, 1.0)(images, lam)
    changed = make_network_like(network)
    for _, norm in changed.norms():
        norm.branch(adversarial=True, width_index=2).running_mean.add_(1.0)
    after = fold(changed, 1.0)(images, lam)
    assert torch.equal(before[0::2], after[0::2])
    assert (before[1::2] - after[1::2]).abs().max() > 1e-3


def make_network_like(network: OATSNetwork) -> OATSNetwork:
    import copy

    return copy.deepcopy(network)


@torch.no_grad()
def test_refold_follows_the_network(case: Case) -> None:
    network, images = case
    network = make_network_like(network)
    folded = fold(network, 0.5)
    lam = torch.linspace(0, 1, len(images))
    for parameter in network.parameters():
        parameter.mul_(1.1)
    refold(folded, network, 0.5)
    torch.testing.assert_close(folded(images, lam), network(images, lam, 0.5), atol=2e-5, rtol=1e-5)


def test_the_folded_network_is_plain(case: Case) -> None:
    network, _ = case
    folded = fold(network, 0.5)
    kinds = {type(module).__name__ for module in folded.modules()}
    assert not kinds & {"SlimmableConv2d", "SlimmableLinear", "ConditionalBatchNorm2d", "FiLM"}
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    wide = sum(p.numel() for p in fold(network, 1.0).parameters())
    assert sum(p.numel() for p in folded.parameters()) < 0.3 * wide


def test_a_width_that_was_not_trained_is_refused() -> None:
    with pytest.raises(InputError, match=r"0\.6"):
        fold(make_network(), 0.6)
