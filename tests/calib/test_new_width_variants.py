"""A width that was not trained, where widths have heads of their own or λ one batch norm."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from oat_edge.calib.bn_affine import tune_affines
from oat_edge.calib.bn_statistics import StatisticsConfig, estimate_statistics
from oat_edge.data import Dataset
from oat_edge.nn.added_width import add_width
from oat_edge.nn.fold import fold
from oat_edge.nn.heads import WidthHeads
from oat_edge.nn.network import OATSNetwork
from tests.conftest import make_network, spec_of, tiny_config

WIDTH, INDEX = 0.6, 1
VARIANTS = {
    "heads": {"heads": "per-width"},
    "single-bn, heads": {"heads": "per-width", "conditioning": "single-bn"},
    "single-bn": {"conditioning": "single-bn"},
}
CONFIG = tiny_config(attack_steps=1, batch_size=40, eps=0.1)
LAMBDAS = torch.tensor([0.0, 1e-6, 0.1, 0.35, 0.7, 1.0])


@pytest.fixture(scope="module", params=VARIANTS)
def added(request: pytest.FixtureRequest) -> tuple[OATSNetwork, OATSNetwork]:
    """A network, and the same with one more width."""
    changes = VARIANTS[request.param]
    network = make_network(**changes)
    return network, add_width(network, spec_of(**changes), WIDTH)[0]


@pytest.fixture(scope="module")
def some(digits: Dataset) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(digits.train.images), torch.from_numpy(digits.train.labels)


@torch.no_grad()
def test_trained_widths_stay_and_the_new_one_folds(
    added: tuple[OATSNetwork, OATSNetwork],
) -> None:
    old, new = added
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    for width in old.widths:
        assert torch.equal(fold(old, width)(images, LAMBDAS), fold(new, width)(images, LAMBDAS))
    torch.testing.assert_close(
        fold(new, WIDTH)(images, LAMBDAS), new(images, LAMBDAS, WIDTH), atol=2e-5, rtol=1e-5
    )


def heads(network: OATSNetwork) -> nn.ModuleList:
    (found,) = (module for module in network.modules() if isinstance(module, WidthHeads))
    return found.heads


@torch.no_grad()
def test_its_head_lies_between_the_neighbours_for_what_both_read() -> None:
    changes = VARIANTS["heads"]
    network, _ = add_width(make_network(**changes), spec_of(**changes), WIDTH)
    low, new, high = (heads(network)[i] for i in (INDEX - 1, INDEX, INDEX + 1))
    assert low.in_features < new.in_features < high.in_features
    count = low.in_features
    expected = low.weight + 0.4 * (high.weight[:, :count] - low.weight)
    torch.testing.assert_close(new.weight[:, :count], expected)
    assert torch.equal(new.weight[:, count:], high.weight[:, count : new.in_features])
    torch.testing.assert_close(new.bias, low.bias + 0.4 * (high.bias - low.bias))


def test_only_what_is_the_new_widths_own_changes(
    added: tuple[OATSNetwork, OATSNetwork], some: tuple[Tensor, Tensor]
) -> None:
    network = copy.deepcopy(added[1])
    before = copy.deepcopy(network.state_dict())

    def changed() -> set[str]:
        after = network.state_dict()
        return {name for name in after if not torch.equal(after[name], before[name])}

    estimate_statistics(network, WIDTH, *some, CONFIG, StatisticsConfig())
    assert {name.rpartition(".")[2] for name in changed()} == {
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip
    tune_affines(network, WIDTH, *some, CONFIG, steps=2, lr=CONFIG.lr, seed=1)
    parts = ("clean", "adversarial", "single", "heads")
    assert all(any(f".{part}.{INDEX}." in name for part in parts) for name in changed())
    kept = network.state_dict().keys() - changed()
    assert not any(any(f".{part}.{INDEX}." in name for part in parts) for name in kept)
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("share", [None, 0.4])
def test_a_single_branch_sees_the_mixture_of_training(
    some: tuple[Tensor, Tensor], share: float | None
) -> None:
    changes = VARIANTS["single-bn"]
    network, _ = add_width(make_network(**changes), spec_of(**changes), WIDTH)
    given: list[tuple[Tensor, Tensor]] = []
    network.backbone.register_forward_pre_hook(
        lambda module, args: (
            given.append((args[0].clone(), network.condition.hat)) if module.training else None
        )
    )
    train = tiny_config(attack_steps=1, eps=0.1, clean_share=share)
    found = estimate_statistics(network, WIDTH, *some, train, StatisticsConfig(batch_size=50))
    assert [change.branch for change in found] == ["single", "single"]
    num_batches = len(some[0]) // 50
    assert len(given) == 2 * num_batches
    start = 0
    for (first, _), (images, hat) in zip(given[:num_batches], given[num_batches:], strict=True):
        count, robust = len(first), hat[: len(first), 0] == 0
        assert torch.equal(images[:count], some[0][start : start + count].float() / 255)
        start += count
        exact = (Fraction(1, 6) if share is None else share) * count
        assert abs(int((~robust).sum()) - exact) <= 1
        # Behind the clean images, the attacked versions of those at λ > 0, at the same λ.
        assert torch.equal(hat[count:], hat[:count][robust])
        distance = (images[count:] - images[:count][robust]).abs().flatten(1).amax(dim=1)
        assert (distance > 0).all() and distance.max() <= 0.1 + 1e-6
