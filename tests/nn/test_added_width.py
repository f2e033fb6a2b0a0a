from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.errors import InputError
from oat_edge.network_spec import NetworkSpec
from oat_edge.nn.added_width import add_width, trained_neighbours
from oat_edge.nn.fold import fold
from oat_edge.nn.network import OATSNetwork
from oat_edge.nn.zoo import build_network
from tests.conftest import make_network, spec_of

SHAPES = {"resnet8": (1, 8, 8), "wrn-10-1": (3, 16, 16), "mobilenet-v2": (3, 16, 16)}
Case = tuple[OATSNetwork, NetworkSpec]


@pytest.fixture(scope="module")
def resnet() -> Case:
    return make_network(), spec_of()


@pytest.mark.parametrize(
    "arch", ["resnet8", "wrn-10-1", pytest.param("mobilenet-v2", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_trained_widths_stay_bit_for_bit_and_the_new_one_folds(arch: str) -> None:
    shape = SHAPES[arch]
    network = make_network(arch, shape)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    added, spec = add_width(network, spec_of(arch, shape), 0.6)
    assert added.widths == spec.widths == (0.5, 0.6, 0.75, 1.0)
    assert spec.calibrated_widths == (0.6,) and spec.trained_widths == network.widths
    assert not added.training
    images = torch.rand(6, *shape, generator=torch.Generator().manual_seed(3))
    lam = torch.tensor([0.0, 1e-6, 0.1, 0.35, 0.7, 1.0])
    for width in network.widths:
        old, new = fold(network, width), fold(added, width)
        assert all(torch.equal(a, b) for a, b in zip(state(old), state(new), strict=True))
        assert torch.equal(old(images, lam), new(images, lam))
    torch.testing.assert_close(
        fold(added, 0.6)(images, lam), added(images, lam, 0.6), atol=2e-5, rtol=1e-5
    )
    # It is a copy: its source has not changed, and does not when the copy does.
    for value in added.state_dict().values():
        value.zero_()
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def state(module: torch.nn.Module) -> list[torch.Tensor]:
    return list(module.state_dict().values())


@torch.no_grad()
def test_the_first_guess_lies_between_the_neighbours_channel_by_channel(resnet: Case) -> None:
    network, spec = resnet
    added, _ = add_width(network, spec, 0.6)
    for _, norm in added.norms():
        for adversarial in (False, True):
            narrow, new, wide = (
                norm.branch(adversarial=adversarial, width_index=i).state_dict() for i in (0, 1, 2)
            )
            for name in ("weight", "bias", "running_mean", "running_var"):
                low, value, high = narrow[name], new[name], wide[name]
                count = len(low)
                expected = low + 0.4 * (high[:count] - low)
                torch.testing.assert_close(value[:count], expected, atol=1e-5, rtol=1e-5)
                assert torch.equal(value[count:], high[count : len(value)])
                assert count < len(value) < len(high)


@given(width=st.integers(501, 999).map(lambda n: n / 1000))
@settings(max_examples=4)
@torch.no_grad()
def test_any_width_between_works_or_is_refused(resnet: Case, width: float) -> None:
    network, spec = resnet
    try:
        added, new_spec = add_width(network, spec, width)
    except InputError as error:
        assert f"{width:g}" in str(error) and "\n" not in str(error)
        return
    # The spec alone rebuilds it: this is how a checkpoint comes back.
    build_network(new_spec).load_state_dict(added.state_dict())
    image = torch.zeros(1, 1, 8, 8)
    assert fold(added, width)(image, torch.ones(1)).isfinite().all()
    below, above = trained_neighbours(spec, width)
    sizes = [sum(p.numel() for p in fold(added, w).parameters()) for w in (below, width, above)]
    assert sizes == sorted(sizes)


def test_a_second_width_has_trained_neighbours(resnet: Case) -> None:
    network, spec = add_width(*resnet, 0.6)
    assert trained_neighbours(spec, 0.65) == (0.5, 0.75)
    network, spec = add_width(network, spec, 0.9)
    assert network.widths == (0.5, 0.6, 0.75, 0.9, 1.0)
    assert spec.calibrated_widths == (0.6, 0.9)


@pytest.mark.parametrize(
    ("width", "says"),
    [
        (0.5, "there already"),
        (1.0, "there already"),
        (0.3, "between 0.5 and 1"),
        (1.2, "between 0.5 and 1"),
        (0.501, "use that one"),
        (0.749, "use that one"),
    ],
)
def test_a_width_is_refused(resnet: Case, width: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        add_width(*resnet, width)


def test_one_width_has_no_neighbours() -> None:
    with pytest.raises(InputError, match="the only one"):
        trained_neighbours(spec_of(widths=(1.0,)), 0.6)
