from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oat_edge.nn.network import OATSNetwork
from oat_edge.train.awp import kept_buffers, perturbed
from oat_edge.train.step import OATSStep, StepOptions
from tests.conftest import make_network

INDEX = torch.tensor([0, 1, 2, 3, 4, 5, 0, 5])


def _loss(network: OATSNetwork, width: float) -> Tensor:
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    hat = torch.eye(6)[torch.full((12,), 5)]
    logits = network.train_pass(
        images, hat, width, adversarial=True, film=_detached(network.film_tables())
    )
    return torch.nn.functional.cross_entropy(logits, torch.arange(12) % 10)


def _detached(film: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(gamma.detach(), beta.detach()) for gamma, beta in film]


@given(gamma=st.floats(1e-3, 0.1), width=st.sampled_from([0.5, 1.0]))
@settings(max_examples=8)
def test_every_weight_moves_by_gamma_of_the_norm_of_the_slice_in_use(
    gamma: float, width: float
) -> None:
    network = make_network(widths=(0.5, 1.0)).train()
    before = copy.deepcopy(network.state_dict())
    reached = 0
    with perturbed(network.backbone, lambda: _loss(network, width), gamma):
        for name, weight in network.named_parameters():
            change = weight.detach() - before[name]
            if weight.ndim < 2 or "film" in name:
                assert not change.any(), name
            else:
                inside = before[name][change != 0]
                assert float(change.norm()) == pytest.approx(
                    gamma * float(inside.norm()), rel=1e-2
                ), name
                outputs = change.flatten(1).any(dim=1).sum() / len(change)
                assert outputs <= width or len(change) == 10, name  # the classifier keeps its rows
                reached += 1
    assert reached > 5
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_loss_is_higher_there_and_an_error_brings_the_weights_back() -> None:
    network = make_network(widths=(1.0,)).train()
    before = copy.deepcopy(network.state_dict())
    with kept_buffers(network):
        plain = _loss(network, 1.0)
    with (
        pytest.raises(RuntimeError, match="inside"),
        perturbed(network.backbone, lambda: _loss(network, 1.0), 0.01),
    ):
        with kept_buffers(network):
            assert _loss(network, 1.0) > plain
        raise RuntimeError("inside")
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())


def test_a_step_counts_its_statistics_once_and_its_gradient_is_taken_elsewhere() -> None:
    after, gradients = [], []
    for options in (StepOptions(), StepOptions(awp_gamma=0.01)):
        network = make_network(widths=(0.5, 1.0))
        start = copy.deepcopy(network.state_dict())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        step = OATSStep(network, optimizer, eps=8 / 255, attack_steps=2, options=options)
        images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        step(images, torch.arange(8), INDEX, torch.Generator().manual_seed(1))
        for name, parameter in network.named_parameters():
            assert torch.equal(parameter, start[name]), name
            assert parameter.grad is not None
        after.append({n: b for n, b in network.named_buffers() if n.endswith("tracked")})
        gradients.append({n: p.grad for n, p in network.named_parameters()})
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])
    assert any(not torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
