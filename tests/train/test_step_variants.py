"""Training with heads per width, the ways of conditioning, and λ between its knots."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.cli.inspect import inspect
from oat_edge.conditioning import PAPER_KNOTS, hat_weights
from oat_edge.data import Dataset
from oat_edge.nn.fold import fold
from oat_edge.nn.heads import WidthHeads
from oat_edge.nn.network import OATSNetwork
from oat_edge.train.checkpoint import load_checkpoint
from oat_edge.train.loop import Trainer
from oat_edge.train.sampling import knot_weights, sample_knots
from oat_edge.train.step import OATSStep
from tests.conftest import make_network, tiny_config

INDEX = torch.tensor([0, 1, 2, 3, 4, 5, 0, 5])
SPEC = ("heads", "conditioning")
BETWEEN = torch.tensor([0, 1.0, 1.5, 2.25, 3.9, 4.5, 0, 5])


def _one_step(network: OATSNetwork, index: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(len(index), 1, 8, 8, generator=generator)
    labels = torch.randint(0, 10, (len(index),), generator=generator)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    return OATSStep(network, optimizer, eps=8 / 255, attack_steps=2)(
        images, labels, index, generator
    )


@pytest.mark.parametrize("heads", ["shared", "per-width"])
@pytest.mark.parametrize("conditioning", ["film", "table", "single-bn"])
@pytest.mark.parametrize("index", [INDEX, BETWEEN], ids=["knots", "continuous"])
def test_a_step_reaches_every_parameter_and_statistic(
    heads: str, conditioning: str, index: torch.Tensor
) -> None:
    network = make_network(heads=heads, conditioning=conditioning)
    before = copy.deepcopy(network.state_dict())
    _one_step(network, index)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        if name.endswith((".gamma", ".beta")):  # every knot of a table
            assert (parameter.grad.abs().sum(dim=1) > 0).all(), name
    for name, after in network.state_dict().items():
        if "running" in name:
            assert not torch.equal(before[name], after), name


def test_places_at_the_knots_are_the_knots_bit_for_bit() -> None:
    networks = [make_network(conditioning="table") for _ in range(2)]
    losses = [_one_step(networks[0], INDEX), _one_step(networks[1], INDEX.float())]
    assert torch.equal(*losses)
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_between_knots_training_sees_what_is_deployed() -> None:
    """A pass with weights of `knot_weights` is the folded network at that λ."""
    network = make_network()
    place = BETWEEN[[1, 2, 3, 4, 5, 7]]
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    hat = knot_weights(place, 6)
    with torch.no_grad():
        logits = network._run(images, hat, 0.5, film=network.film_tables())
        deployed = fold(network, 0.5)(images, hat @ torch.tensor(PAPER_KNOTS))
    torch.testing.assert_close(logits, deployed, atol=2e-5, rtol=1e-5)


@given(through_zero=st.booleans(), data=st.data())
def test_weights_between_knots_are_those_of_their_lambda(
    through_zero: bool, data: st.DataObject
) -> None:
    places = data.draw(st.lists(st.floats(0 if through_zero else 1, 5, width=32), min_size=1))
    hat = knot_weights(torch.tensor(places), 6)
    lam = (hat @ torch.tensor(PAPER_KNOTS)).numpy()
    expected = torch.from_numpy(hat_weights(lam, PAPER_KNOTS, through_zero=through_zero))
    # λ is float32: what it cannot tell apart, 6e-8 near 1, is 6e-7 of a gap of 0.1.
    torch.testing.assert_close(hat, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("lowest", [0, 1])
def test_continuous_places_are_uniform_and_the_clean_share_is_kept(lowest: int) -> None:
    generator = torch.Generator().manual_seed(0)
    place = sample_knots(20000, 6, 0.3, generator, lowest_continuous=lowest)
    assert place.dtype == torch.float32 and (place == 0).sum() == 6000
    above = place[place > 0]
    assert lowest <= above.min() and above.max() <= 5
    share = torch.histc(above, bins=5 - lowest, min=lowest, max=5) / len(above)
    assert (share - 1 / (5 - lowest)).abs().max() < 0.02


def test_a_single_branch_normalises_by_the_mixture() -> None:
    """The statistics move once per step and width, to those of all its images together."""
    network = make_network(conditioning="single-bn", widths=(1.0,))
    _, first = network.norms()[0]
    seen = []
    first.register_forward_pre_hook(lambda module, args: seen.append((module.training, args[0])))
    norm = first.branch(adversarial=True, width_index=0)
    before = norm.running_mean.clone()
    _one_step(network, INDEX)
    (x,) = (one for training, one in seen if training)
    assert len(x) == 2 + 2 * 6, "clean images at λ = 0, both versions of the others"
    expected = 0.9 * before + 0.1 * x.mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": "per-width", "conditioning": "table"},
        {"conditioning": "single-bn", "lambda_sampling": "continuous"},
    ],
    ids=str,
)
def test_a_run_of_a_variant_comes_back(
    changes: dict, digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(tiny_config(**changes), digits, tmp_path / "run")
    trainer.train()
    assert trainer.state.metrics[-1]["loss"] < trainer.state.metrics[0]["loss"]
    checkpoint = load_checkpoint(tmp_path / "run")
    for name in SPEC:
        assert getattr(checkpoint.spec, name) == getattr(trainer.config, name)
    inspect(tmp_path / "run")
    said = capsys.readouterr().out
    assert all(f"{name} {value}" in said for name, value in changes.items() if name in SPEC)
    has_heads = any(isinstance(m, WidthHeads) for m in checkpoint.network.modules())
    assert has_heads == (checkpoint.spec.heads == "per-width")
    again = Trainer(trainer.config, digits, tmp_path / "run", resume=True)
    now = again.network.state_dict()
    assert all(
        torch.equal(value, now[name]) for name, value in trainer.network.state_dict().items()
    )
