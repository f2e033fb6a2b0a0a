from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oat_edge.calib.bn_statistics import (
    StatisticsConfig,
    average_statistics,
    estimate_statistics,
)
from oat_edge.calib.new_widths import calibrate_widths
from oat_edge.calib.width_error import Judge
from oat_edge.config import TrainConfig
from oat_edge.data import Dataset, Split, load
from oat_edge.errors import InputError
from oat_edge.nn.added_width import add_width
from oat_edge.nn.fold import fold
from oat_edge.nn.network import OATSNetwork
from oat_edge.train.checkpoint import load_checkpoint
from tests.conftest import make_network, spec_of, tiny_config

WIDTH = 0.6


def branches(network: OATSNetwork, width: float, *, adversarial: bool) -> list[nn.BatchNorm2d]:
    index = network.width_index(width)
    return [m.branch(adversarial=adversarial, width_index=index) for _, m in network.norms()]


@contextmanager
def inputs_of(layers: list[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """What each layer is given while this is open, call by call."""
    seen: list[list[Tensor]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, kept=kept: kept.append(args[0].detach().clone())
        )
        for layer, kept in zip(layers, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module")
def some() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (61, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 10, (61,), generator=generator)


@pytest.fixture
def network() -> OATSNetwork:
    return add_width(make_network(), spec_of(), WIDTH)[0]


@pytest.mark.parametrize("rounds", [1, 2])
def test_statistics_are_the_averages_of_what_the_layers_were_given(
    network: OATSNetwork, some: tuple[Tensor, Tensor], rounds: int
) -> None:
    config = StatisticsConfig(batch_size=20, rounds=rounds)
    for adversarial in (False, True):
        mine = copy.deepcopy(network)
        norms = branches(mine, WIDTH, adversarial=adversarial)
        with inputs_of([*norms]) as seen:
            estimate_statistics(mine, WIDTH, *some, tiny_config(), config)
        # 61 images make three batches; attacked and clean, they pass one after the other.
        passes = 6 if adversarial else 3
        for norm, all_passes in zip(norms, seen, strict=True):
            assert len(all_passes) == (3 + 6 * rounds if adversarial else 3)
            last = [x.double().transpose(0, 1).flatten(1).numpy() for x in all_passes[-passes:]]
            mean = np.mean([x.mean(axis=1) for x in last], axis=0)
            variance = np.mean([x.var(axis=1, ddof=1) for x in last], axis=0)
            np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(norm.running_var, variance, rtol=1e-4, atol=1e-6)


def test_only_the_new_width_is_touched(network: OATSNetwork, some: tuple[Tensor, Tensor]) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    changes = estimate_statistics(network, WIDTH, *some, tiny_config(), StatisticsConfig())
    assert [change.branch for change in changes] == ["clean", "adversarial", "adversarial"]
    assert all(change.mean > 0.1 and change.variance > 0.1 for change in changes[:2])
    after = network.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    index = network.width_index(WIDTH)
    own = tuple(f".{branch}.{index}." for branch in ("clean", "adversarial"))
    assert changed and all(any(part in name for part in own) for name in changed)
    # The learned affine stays the blend of the neighbours'.
    assert {name.rpartition(".")[2] for name in changed} == {
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip
    assert not network.training
    assert {norm.momentum for norm in branches(network, WIDTH, adversarial=True)} == {0.1}
    images, lam = some[0][:6].float() / 255, torch.tensor([0.0, 1e-6, 0.1, 0.35, 0.7, 1.0])
    with torch.no_grad():
        torch.testing.assert_close(
            fold(network, WIDTH)(images, lam), network(images, lam, WIDTH), atol=2e-5, rtol=1e-5
        )


def test_one_pass_equals_layer_after_layer(
    network: OATSNetwork, some: tuple[Tensor, Tensor]
) -> None:
    """In one batch: the way that takes a pass per layer, each on what finished layers give."""
    images = some[0].float() / 255
    hat = torch.eye(len(network.knots))[torch.zeros(len(images), dtype=torch.int64)]
    slow = copy.deepcopy(network)
    average_statistics(network, WIDTH, [(images, hat)], adversarial=False)
    order = called_order(slow)
    for position in order:
        norm = branches(slow, WIDTH, adversarial=False)[position]
        with inputs_of([slow.norms()[position][1]]) as seen, torch.no_grad():
            slow(images, torch.zeros(len(images)), WIDTH)
        given = seen[0][0].transpose(0, 1).flatten(1)
        norm.running_mean, norm.running_var = given.mean(dim=1), given.var(dim=1)
    for one, other in zip(
        branches(network, WIDTH, adversarial=False),
        branches(slow, WIDTH, adversarial=False),
        strict=True,
    ):
        # Variances are unbiased where they are kept, and biased where a batch is normalised.
        deviation = other.running_var.sqrt()
        assert ((one.running_mean - other.running_mean).abs() / deviation).max() < 0.02
        torch.testing.assert_close(one.running_var, other.running_var, rtol=0.02, atol=0)


def called_order(network: OATSNetwork) -> list[int]:
    """Positions in `norms()` in the order of the forward pass: shortcuts may be named earlier."""
    called: list[int] = []
    hooks = [
        norm.register_forward_pre_hook(lambda module, args, i=i: called.append(i))
        for i, (_, norm) in enumerate(network.norms())
    ]
    with torch.no_grad():
        network(torch.zeros(1, 1, 8, 8), torch.zeros(1), WIDTH)
    for hook in hooks:
        hook.remove()
    return called


def test_the_adversarial_branch_sees_both_versions_at_every_knot_above_0(
    network: OATSNetwork, some: tuple[Tensor, Tensor]
) -> None:
    given: list[tuple[Tensor, Tensor, bool]] = []

    def note(module: nn.Module, args: tuple[Tensor]) -> None:
        condition = network.condition
        if module.training and condition.hat is not None:
            given.append((args[0].clone(), condition.hat, condition.adversarial))

    network.backbone.register_forward_pre_hook(note)
    train = tiny_config(eps=0.1)
    estimate_statistics(network, WIDTH, *some, train, StatisticsConfig(batch_size=61))
    (_, hat, adversarial), (first, _, _), (attacked, *_), (clean, hats, both) = given
    assert not adversarial and torch.equal(hat.argmax(dim=1), torch.zeros(61, dtype=torch.int64))
    assert both and torch.equal(first, clean) and torch.equal(clean, some[0].float() / 255)
    distance = (attacked - clean).abs().flatten(1).amax(dim=1)
    assert (distance > 0).all() and distance.max() <= 0.1 + 1e-6
    assert attacked.min() >= 0 and attacked.max() <= 1
    counts = hats.sum(dim=0)
    assert counts[0] == 0 and counts[1:].max() - counts[1:].min() <= 1


@pytest.mark.parametrize(
    ("lambdas", "branch", "estimates"), [((0.0,), "clean", 1), ((1.0,), "adversarial", 2)]
)
def test_a_dedicated_network_has_one_branch(
    some: tuple[Tensor, Tensor], lambdas: tuple[float, ...], branch: str, estimates: int
) -> None:
    network, _ = add_width(make_network(lambdas=lambdas), spec_of(lambdas=lambdas), WIDTH)
    changes = estimate_statistics(network, WIDTH, *some, tiny_config(), StatisticsConfig())
    assert [change.branch for change in changes] == [branch] * estimates


def test_a_trained_width_comes_back(trained_run: Path) -> None:
    """As if it were not known: its statistics are forgotten and taken again."""
    checkpoint = load_checkpoint(trained_run)
    train = TrainConfig.from_json(checkpoint.info["train"])
    data = load("digits", train_samples=train.train_samples, seed=train.seed)
    judge = Judge(data.val, train, num_attacked=len(data.val), seed=0)
    trained, forgotten = checkpoint.network, copy.deepcopy(checkpoint.network)
    for adversarial in (False, True):
        for norm in branches(forgotten, 1.0, adversarial=adversarial):
            norm.reset_running_stats()
    known, lost = judge.standard(trained, 1.0), judge.standard(forgotten, 1.0)
    images = torch.from_numpy(data.train.images)
    labels = torch.from_numpy(data.train.labels)
    estimate_statistics(forgotten, 1.0, images, labels, train, StatisticsConfig())
    found = judge.standard(forgotten, 1.0)
    for lam in trained.knots:
        assert known[lam] > 0.8 and lost[lam] < 0.6
        assert abs(found[lam] - known[lam]) <= 0.04
        robust = [judge._robust(fold(n, 1.0), lam).mean() for n in (trained, forgotten)]
        assert abs(robust[0] - robust[1]) <= 0.08
    for adversarial in (False, True):
        for one, other in zip(
            branches(trained, 1.0, adversarial=adversarial),
            branches(forgotten, 1.0, adversarial=adversarial),
            strict=True,
        ):
            shift = (one.running_mean - other.running_mean).abs() / other.running_var.sqrt()
            ratio = (one.running_var / other.running_var).log().abs()
            assert shift.mean() < 0.15 and ratio.mean() < 0.25


def test_images_come_from_the_training_split_alone(tiny_run: Path, digits: Dataset) -> None:
    checkpoint = load_checkpoint(tiny_run)
    config = StatisticsConfig(samples=50, tune_steps=0)

    def state(dataset: Dataset) -> dict[str, Tensor]:
        made = calibrate_widths(checkpoint, dataset, (WIDTH,), config, num_attacked=2)
        return made.network.state_dict()

    def black(split: Split) -> Split:
        return Split(images=np.zeros_like(split.images), labels=split.labels)

    once = state(digits)
    others = dataclasses.replace(digits, val=black(digits.val), test=black(digits.test))
    assert all(torch.equal(value, once[name]) for name, value in state(others).items())
    changed = dataclasses.replace(digits, train=black(digits.train))
    assert any(not torch.equal(value, once[name]) for name, value in state(changed).items())


@pytest.mark.parametrize("name", ["samples", "batch_size", "rounds", "tune_steps"])
def test_senseless_settings_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        StatisticsConfig(**{name: -1})


@pytest.mark.parametrize("rate", [0.0, -0.1, float("inf"), float("nan")])
def test_a_learning_rate_is_positive(rate: float) -> None:
    with pytest.raises(InputError, match=r"tune_lr is .*: expected a positive number"):
        StatisticsConfig(tune_lr=rate)


def test_one_image_has_no_variance(network: OATSNetwork, some: tuple[Tensor, Tensor]) -> None:
    images, labels = some
    with pytest.raises(InputError, match="2 or more"):
        estimate_statistics(
            network, WIDTH, images[:1], labels[:1], tiny_config(), StatisticsConfig()
        )
