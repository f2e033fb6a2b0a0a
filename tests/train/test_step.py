"""The step against the same mathematics written out plainly."""

from __future__ import annotations

import pytest
import torch

from benchmarks.straightforward import StraightforwardNetwork, straightforward_step
from oat_edge.train.step import OATSStep
from tests.conftest import make_network


@pytest.mark.parametrize(("arch", "shape"), [("resnet8", (1, 8, 8)), ("wrn-10-1", (3, 8, 8))])
def test_step_equals_the_straightforward_one(arch: str, shape: tuple[int, int, int]) -> None:
    network = make_network(arch, shape).double()
    plain = StraightforwardNetwork(network)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(14, *shape, generator=generator).double()
    labels = torch.randint(0, 10, (14,), generator=generator)
    index = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 5])
    settings = {"eps": 8 / 255, "attack_steps": 2}
    step = OATSStep(network, _sgd(network), **settings)  # type: ignore[arg-type]
    # Random starts are drawn in float32; eps of 0 noise would hide the attack, so share the seed.
    loss = step(images, labels, index, torch.Generator().manual_seed(1))
    expected = straightforward_step(
        plain,
        _sgd(plain),
        images,
        labels,
        torch.tensor(network.knots).double()[index],
        torch.Generator().manual_seed(1),
        **settings,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(loss, expected, check_dtype=False, atol=1e-6, rtol=1e-6)
    ours = dict(network.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours[name], parameter, atol=1e-7, rtol=1e-5, msg=name)
    buffers = dict(network.named_buffers())
    for name, buffer in plain.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffers[name], buffer, atol=1e-7, rtol=1e-5, msg=name)


def _sgd(module: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def _one_step(network, index: list[int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(len(index), 1, 8, 8, generator=generator)
    labels = torch.randint(0, 10, (len(index),), generator=generator)
    step = OATSStep(network, _sgd(network), eps=8 / 255, attack_steps=2)
    return step(images, labels, torch.tensor(index), generator)


def _statistics(network) -> dict[str, torch.Tensor]:
    return {n: b.clone() for n, b in network.named_buffers() if n.endswith("running_mean")}


@pytest.mark.parametrize(("index", "moving"), [([0] * 8, "clean"), ([1, 5] * 4, "adversarial")])
def test_samples_touch_the_statistics_of_their_branch_only(index: list[int], moving: str) -> None:
    network = make_network()
    before = _statistics(network)
    _one_step(network, index)
    for name, after in _statistics(network).items():
        assert torch.equal(before[name], after) == (moving not in name), name


def test_every_width_moves_its_own_statistics_and_all_share_the_weights() -> None:
    network = make_network()
    before = _statistics(network)
    _one_step(network, [0, 1, 2, 3, 4, 5, 0, 5])
    assert all(not torch.equal(before[n], after) for n, after in _statistics(network).items())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_pgd_at_never_sees_a_clean_image_in_training() -> None:
    """With the attack off (eps = 0) a clean pass would count every batch twice."""
    network = make_network(widths=(1.0,), lambdas=(1.0,))
    _one_step(network, [0] * 8)
    counts = [b for n, b in network.named_buffers() if n.endswith("num_batches_tracked")]
    assert all(int(count) == 1 for count in counts)


def test_standard_training_is_not_attacked() -> None:
    network = make_network(widths=(1.0,), lambdas=(0.0,))
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
    step = OATSStep(network, _sgd(network), eps=8 / 255, attack_steps=2)
    step(images, labels, torch.zeros(8, dtype=torch.int64), generator)
    assert torch.equal(generator.get_state(), state), "the attack drew random numbers"


def test_the_attack_leaves_the_network_trainable() -> None:
    network = make_network()
    _one_step(network, [0, 1, 2, 3, 4, 5, 0, 5])
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
