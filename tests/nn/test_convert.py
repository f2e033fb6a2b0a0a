from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from oat_edge.conditioning import PAPER_KNOTS
from oat_edge.errors import InputError
from oat_edge.nn.convert import convert
from oat_edge.nn.fold import fold
from oat_edge.nn.network import OATSNetwork

SHAPE = (3, 8, 8)


def _convert(net: nn.Module, **changes: object) -> OATSNetwork:
    settings = {"widths": (0.5, 1.0), "lambdas": PAPER_KNOTS, "image_shape": SHAPE} | changes
    return convert(net, **settings)  # type: ignore[arg-type]


def _cnn(*middle: nn.Module) -> nn.Module:
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 8, 3, padding=1),
        bn1=nn.BatchNorm2d(8),
        relu=nn.ReLU(),
        middle=nn.Sequential(*middle),
        pool=nn.AdaptiveAvgPool2d(2),
        flat=nn.Flatten(),
        hidden=nn.Linear(32, 20),
        relu2=nn.ReLU(),
        head=nn.Linear(20, 5),
    )
    return nn.Sequential(layers)


class SqueezeExcite(nn.Module):
    """A user's own block: convolutions without a norm, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class AllConvolutional(nn.Module):
    """No Linear at all: the head is a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.bn(self.conv(x)))).mean((2, 3))


class Concatenating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 1)
        self.bn = nn.BatchNorm2d(10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3)))


class FixedView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(512, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(x)).view(-1, 512))


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(8)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class ScaledConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "net",
    [
        _cnn(),
        _cnn(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Dropout(0.3)),
        _cnn(nn.Conv2d(8, 8, 3, padding="same", groups=4), nn.BatchNorm2d(8)),
        _cnn(SqueezeExcite()),
        AllConvolutional(),
    ],
    ids=["plain", "depthwise", "grouped", "squeeze-excite", "all-convolutional"],
)
def test_a_users_network_gets_both_knobs(net: nn.Module) -> None:
    before = copy.deepcopy(net.state_dict())
    network = _convert(net).eval()
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items()), "net was changed"
    images, lam = torch.rand(6, *SHAPE), torch.tensor(PAPER_KNOTS)
    for width in (0.5, 1.0):
        with torch.no_grad():
            expected = network(images, lam, width)
            torch.testing.assert_close(fold(network, width)(images, lam), expected)
    assert expected.shape == (6, net(images).shape[1])


def test_conversion_keeps_the_function_at_full_width() -> None:
    net = _cnn().eval()
    network = _convert(net).eval()
    images = torch.rand(4, *SHAPE)
    with torch.no_grad():
        for lam in PAPER_KNOTS:
            got = network(images, torch.full((4,), lam), 1.0)
            torch.testing.assert_close(got, net(images))


@pytest.mark.parametrize(
    ("net", "name", "reason"),
    [
        (_cnn(nn.GroupNorm(2, 8)), "middle.0", "GroupNorm"),
        (_cnn(nn.LayerNorm([8, 8, 8])), "middle.0", "LayerNorm"),
        (_cnn(nn.InstanceNorm2d(8)), "middle.0", "InstanceNorm2d"),
        (_cnn(nn.BatchNorm2d(8, affine=False)), "middle.0", "affine"),
        (_cnn(nn.BatchNorm2d(8, track_running_stats=False)), "middle.0", "running"),
        (_cnn(nn.ConvTranspose2d(8, 8, 1)), "middle.0", "ConvTranspose2d"),
        (_cnn(nn.PReLU(8)), "middle.0", "PReLU"),
        (_cnn(LayerScale()), "middle.0", "LayerScale"),
        (_cnn(ScaledConv(8, 8, 1)), "middle.0", "ScaledConv"),
        (_cnn(SharedNorm()), "middle.0.second", "second name"),
        (_cnn(nn.Flatten(2), nn.MultiheadAttention(64, 4)), "middle.1", "MultiheadAttention"),
        (Concatenating(), "bn", "concatenated"),
        (FixedView(), "width 0.5", "number of channels"),
        (nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), "BatchNorm2d", "λ"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "logits", "shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_converted_is_refused_by_name(
    net: nn.Module, name: str, reason: str
) -> None:
    with pytest.raises(InputError) as error:
        _convert(net)
    assert name in str(error.value)
    assert reason in str(error.value)


def test_a_dedicated_network_has_one_branch_and_no_film() -> None:
    for lam in (0.0, 1.0):
        network = _convert(_cnn(), widths=(1.0,), lambdas=(lam,))
        names = [name for name, _ in network.named_parameters()]
        assert not any("film" in name for name in names)
        assert any("adversarial" in name for name in names) == (lam > 0)
        assert any("clean" in name for name in names) == (lam == 0)


def test_film_is_left_out_where_asked() -> None:
    network = _convert(_cnn(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)), no_film=("middle.*",))
    assert {name: norm.film is None for name, norm in network.norms()} == {
        "bn1": False,
        "middle.1": True,
    }


def test_encodings_are_part_of_the_state() -> None:
    a = _convert(_cnn(), generator=torch.Generator().manual_seed(1))
    b = _convert(_cnn(), generator=torch.Generator().manual_seed(2))
    assert not torch.equal(a.encodings, b.encodings)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.encodings, b.encodings)
