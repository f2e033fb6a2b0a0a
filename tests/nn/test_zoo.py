from __future__ import annotations

import pytest
import torch

from oat_edge.errors import InputError
from oat_edge.network_spec import NetworkSpec
from oat_edge.nn.fold import fold
from oat_edge.nn.zoo import architecture, build_network


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Published sizes (He et al.; Zagoruyko & Komodakis, table 1; facts: ResNet-34 21.28 M).
    [("resnet18", 11.17e6), ("resnet34", 21.28e6), ("wrn-16-8", 10.96e6), ("wrn-40-2", 2.24e6)],
)
def test_plain_networks_have_their_published_sizes(name: str, parameters: float) -> None:
    net = architecture(name).build(3, 10)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(parameters, rel=2e-3)


@pytest.mark.parametrize(
    "name", ["resnet9", "wrn-17-1", "wrn-4-1", "wrn-16-0", "wrn", "", "vit", "-s2", "resnet8-s3"]
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        architecture(name).build(3, 10)


def _spec(**changes: object) -> NetworkSpec:
    values = {
        "arch": "resnet8",
        "class_names": ("a", "b"),
        "image_shape": (1, 8, 8),
        "eps": 0.1,
    } | changes
    return NetworkSpec(**values)  # type: ignore[arg-type]


def test_the_seed_decides_every_weight_and_leaves_torch_alone() -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    a = build_network(_spec(), generator=torch.Generator().manual_seed(5)).state_dict()
    assert torch.equal(torch.rand(3), expected), "the caller's random stream was used"
    b = build_network(_spec(), generator=torch.Generator().manual_seed(5)).state_dict()
    c = build_network(_spec(), generator=torch.Generator().manual_seed(6)).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["backbone.net.conv1.weight"], c["backbone.net.conv1.weight"])


def test_normalisation_is_inside_the_network() -> None:
    mean, std = torch.tensor([0.4]), torch.tensor([0.2])
    network = build_network(_spec(), mean=mean, std=std).eval()
    plain = build_network(_spec()).eval()
    images, lam = torch.rand(2, 1, 8, 8), torch.zeros(2)
    with torch.no_grad():
        torch.testing.assert_close(network(images, lam), plain((images - 0.4) / 0.2, lam))
        torch.testing.assert_close(fold(network, 0.5)(images, lam), network(images, lam, 0.5))


def test_shortcuts_and_the_last_norm_have_no_film() -> None:
    resnet = build_network(_spec())
    assert {n for n, m in resnet.norms() if m.film is None} == {
        "net.blocks.1.shortcut.1",
        "net.blocks.2.shortcut.1",
    }
    wrn = build_network(_spec(arch="wrn-10-1"))
    assert [n for n, m in wrn.norms() if m.film is None] == ["net.bn"]


@pytest.mark.parametrize("name", ["resnet8-s2", "wrn-10-2-s2"])
def test_a_stem_of_stride_2_halves_the_image_and_changes_no_weight(name: str) -> None:
    half = build_network(_spec(arch=name, image_shape=(3, 16, 16)))
    whole = build_network(_spec(arch=name.removesuffix("-s2"), image_shape=(3, 16, 16)))
    assert {k: v.shape for k, v in half.state_dict().items()} == {
        k: v.shape for k, v in whole.state_dict().items()
    }
    size = []
    for network in (half, whole):
        stem = network.get_submodule("backbone.net.conv1")
        stem.register_forward_hook(lambda _, __, y: size.append(y.shape[-2:]))
        with torch.no_grad():
            network.eval()(torch.rand(1, 3, 16, 16), torch.zeros(1))
    assert size == [(8, 8), (16, 16)]


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "wrn-16-1", "wrn-10-2", "wrn-10-1-s2"])
@pytest.mark.parametrize("width", [0.25, 0.35, 0.5, 0.75])
def test_a_narrow_network_of_its_own_has_the_sizes_of_that_width(name: str, width: float) -> None:
    slim = fold(build_network(_spec(arch=name, widths=(width, 1.0), image_shape=(3, 8, 8))), width)
    own = build_network(_spec(arch=f"{name}-x{width:g}", widths=(1.0,), image_shape=(3, 8, 8)))

    def convolutions(network: torch.nn.Module) -> list[tuple[int, ...]]:
        return [tuple(m.weight.shape) for m in network.modules() if isinstance(m, torch.nn.Conv2d)]

    assert convolutions(slim) == convolutions(fold(own, 1.0))


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet-v2-x0.5",
        "mobilenet-v2-s2",
        "resnet8-x0",
        "resnet8-x0.0",
        "resnet8-x2",
        "resnet8-x0.5-s2",
    ],
)
def test_a_narrow_network_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"-x0\.5"):
        architecture(name)
