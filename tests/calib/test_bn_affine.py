from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from oat_edge.calib.bn_affine import tune_affines
from oat_edge.calib.bn_statistics import StatisticsConfig, estimate_statistics
from oat_edge.config import TrainConfig
from oat_edge.data import Dataset
from oat_edge.errors import InputError
from oat_edge.evaluation.accuracy import to_float
from oat_edge.nn.added_width import add_width
from oat_edge.nn.fold import fold
from oat_edge.nn.network import OATSNetwork
from tests.conftest import make_network, spec_of, tiny_config

WIDTH = 0.6
CONFIG: TrainConfig = tiny_config(attack_steps=1, batch_size=40)


@pytest.fixture(scope="module")
def some(digits: Dataset) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(digits.train.images), torch.from_numpy(digits.train.labels)


@pytest.fixture(scope="module")
def network(some: tuple[Tensor, Tensor]) -> OATSNetwork:
    made, _ = add_width(make_network(), spec_of(), WIDTH)
    estimate_statistics(made, WIDTH, *some, CONFIG, StatisticsConfig(rounds=0))
    return made


@pytest.fixture(scope="module")
def tuned(network: OATSNetwork, some: tuple[Tensor, Tensor]) -> OATSNetwork:
    made = copy.deepcopy(network)
    tune_affines(made, WIDTH, *some, CONFIG, steps=6, lr=0.01, seed=1)
    return made


def test_only_the_batch_norms_of_the_new_width_learn(
    network: OATSNetwork, tuned: OATSNetwork
) -> None:
    before, after = network.state_dict(), tuned.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    index = network.width_index(WIDTH)
    own = [f".{branch}.{index}." for branch in ("clean", "adversarial")]
    assert all(any(part in name for part in own) for name in changed)
    for part in own:
        assert {name.rpartition(".")[2] for name in changed if part in name} == {
            "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
        }  # fmt: skip
    assert not tuned.training
    assert all(parameter.requires_grad for parameter in tuned.parameters())
    assert all(parameter.grad is None for parameter in tuned.parameters())


def test_the_loss_falls(
    network: OATSNetwork, tuned: OATSNetwork, some: tuple[Tensor, Tensor]
) -> None:
    images, labels = torch.from_numpy(to_float(some[0].numpy())), some[1]

    def loss(one: OATSNetwork, lam: float) -> float:
        one = copy.deepcopy(one)
        estimate_statistics(one, WIDTH, *some, CONFIG, StatisticsConfig())
        with torch.no_grad():
            logits = fold(one, WIDTH)(images, torch.full((len(images),), lam))
        return float(torch.nn.functional.cross_entropy(logits, labels))

    for lam in network.knots:
        assert loss(tuned, lam) < loss(network, lam)


def test_the_seed_decides(
    network: OATSNetwork, tuned: OATSNetwork, some: tuple[Tensor, Tensor]
) -> None:
    again, other = copy.deepcopy(network), copy.deepcopy(network)
    tune_affines(again, WIDTH, *some, CONFIG, steps=6, lr=0.01, seed=1)
    tune_affines(other, WIDTH, *some, CONFIG, steps=3, lr=0.01, seed=2)
    same = zip(again.state_dict().values(), tuned.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(fold(other, WIDTH).table, fold(tuned, WIDTH).table)


def test_one_step_is_as_long_as_its_learning_rate(
    network: OATSNetwork, some: tuple[Tensor, Tensor]
) -> None:
    def moved(lr: float) -> Tensor:
        made = copy.deepcopy(network)
        tune_affines(made, WIDTH, *some, CONFIG, steps=1, lr=lr, seed=1)
        pairs = zip(made.parameters(), network.parameters(), strict=True)
        return torch.cat([(new - old).detach().flatten() for new, old in pairs])

    assert moved(0.01).norm() > 1e-4
    torch.testing.assert_close(moved(0.02), 2 * moved(0.01), rtol=1e-3, atol=1e-6)


def test_a_clean_pass_of_all_images_is_tuned_as_it_was_trained(
    network: OATSNetwork, some: tuple[Tensor, Tensor]
) -> None:
    """One step from the whole data set moves the clean affines by their weighted gradient at λ = 0
    on all of it, whatever was drawn."""
    config = dataclasses.replace(CONFIG, batch_size=len(some[0]), clean_images="all")
    made, reference = copy.deepcopy(network), copy.deepcopy(network)
    tune_affines(made, WIDTH, *some, config, steps=1, lr=0.01, seed=1)

    reference.train()
    images = torch.from_numpy(to_float(some[0].numpy()))
    logits = reference.train_pass(
        images,
        reference.hat(torch.zeros(len(images))),
        WIDTH,
        adversarial=False,
        film=reference.film_tables(),
    )
    loss = config.clean_weight * torch.nn.functional.cross_entropy(logits, some[1])
    torch.autograd.backward(loss)
    index = network.width_index(WIDTH)
    for norms in zip(made.norms(), network.norms(), reference.norms(), strict=True):
        new, old, like = (norm.branch(adversarial=False, width_index=index) for _, norm in norms)
        assert like.weight.grad is not None
        torch.testing.assert_close(
            old.weight - new.weight, 0.01 * like.weight.grad, rtol=1e-3, atol=1e-6
        )


def test_too_few_images_are_refused(network: OATSNetwork, some: tuple[Tensor, Tensor]) -> None:
    images, labels = some
    with pytest.raises(InputError, match="at least 12, give more --samples or --tune-steps 0"):
        tune_affines(network, WIDTH, images[:11], labels[:11], CONFIG, steps=3, lr=0.01, seed=0)
