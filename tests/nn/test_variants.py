"""Heads per width and the ways of conditioning on λ, against the same network written plainly."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oat_edge.conditioning import PAPER_KNOTS
from oat_edge.errors import InputError
from oat_edge.nn.conditional_norm import ConditionalBatchNorm2d
from oat_edge.nn.convert import convert
from oat_edge.nn.fold import PinnedNetwork, fold, refold
from oat_edge.nn.heads import WidthHeads
from oat_edge.nn.network import OATSNetwork
from tests.conftest import make_network, spec_of

SHAPES = {"resnet8": (1, 8, 8), "wrn-10-1": (3, 16, 16), "mobilenet-v2": (3, 16, 16)}
VARIANTS = {
    "heads": {"heads": "per-width"},
    "table": {"conditioning": "table"},
    "single-bn": {"conditioning": "single-bn"},
    "single-bn, heads": {"conditioning": "single-bn", "heads": "per-width"},
}
WIDTHS = (0.5, 0.75, 1.0)
LAMBDAS = (*PAPER_KNOTS, 1e-6, 0.03, 0.15, 0.35, 0.6, 0.99)

Case = tuple[OATSNetwork, Tensor, str]


class PlainNorm(nn.Module):
    """One λ for the whole batch: its batch norm, then gamma and beta between those of the knots."""

    def __init__(self, norm: ConditionalBatchNorm2d, lam: float, index: int, film: list) -> None:
        super().__init__()
        knots = norm.knots
        self.norm = norm.branch(adversarial=lam > 0, width_index=index)
        self.gamma, self.beta = torch.ones(()), torch.zeros(())
        if norm.film is None:
            return
        columns = slice(1 if norm.single is None and lam > 0 else 0, None)
        self.gamma, self.beta = (
            torch.tensor(
                [np.interp(lam, knots[columns], column) for column in table[columns].T.numpy()],
                dtype=torch.float32,
            )[: self.norm.num_features, None, None]
            for table in film[norm.film_index]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.norm(x) + self.beta


def plain(network: OATSNetwork, lam: float, width: float) -> nn.Module:
    """The backbone with plain norms, in eval mode."""
    index, film = network.width_index(width), network.film_tables()
    network = copy.deepcopy(network)
    network.condition.width_index = index
    for name, norm in network.norms():
        network.backbone.set_submodule(name, PlainNorm(norm, lam, index, film))
    return network.backbone.eval()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((arch, variant), marks=[pytest.mark.slow] if arch == "mobilenet-v2" else [])
        for arch in SHAPES
        for variant in VARIANTS
    ],
    ids=", ".join,
)
def case(request: pytest.FixtureRequest) -> Case:
    arch, variant = request.param
    network = make_network(arch, SHAPES[arch], **VARIANTS[variant])
    images = torch.rand(len(LAMBDAS), *SHAPES[arch], generator=torch.Generator().manual_seed(7))
    return network, images, arch


@torch.no_grad()
def test_folded_and_unfolded_equal_the_plain_network_at_any_lambda_and_width(case: Case) -> None:
    network, images, _ = case
    lam = torch.tensor(LAMBDAS)
    for width in WIDTHS:
        logits = torch.cat(
            [plain(network, one, width)(images[i : i + 1]) for i, one in enumerate(LAMBDAS)]
        )
        torch.testing.assert_close(network(images, lam, width), logits, atol=2e-5, rtol=1e-5)
        folded = fold(network, width)
        torch.testing.assert_close(folded(images, lam), logits, atol=2e-5, rtol=1e-5)
        pinned = PinnedNetwork(folded, 0.35)(images[9:10])
        torch.testing.assert_close(pinned, logits[9:10], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_refold_follows_every_parameter(case: Case) -> None:
    network, images, _ = case
    network = copy.deepcopy(network)
    folded = {width: fold(network, width) for width in WIDTHS}
    for parameter in network.parameters():
        parameter.mul_(1.1)
    lam = torch.tensor(LAMBDAS)
    for width, one in folded.items():
        refold(one, network, width)
        expected = network(images, lam, width)
        torch.testing.assert_close(one(images, lam), expected, atol=2e-5, rtol=1e-5)


def test_the_folded_network_is_as_plain_and_small_as_ever(case: Case) -> None:
    network, _, arch = case
    usual = make_network(arch, SHAPES[arch])
    for width in WIDTHS:
        ours, theirs = fold(network, width), fold(usual, width)
        assert {name: one.shape for name, one in ours.backbone.state_dict().items()} == {
            name: one.shape for name, one in theirs.backbone.state_dict().items()
        }
        assert not any(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize(
    ("arch", "variant", "widths"),
    [
        ("resnet8", "single-bn, heads", WIDTHS),
        ("wrn-10-1", "table", (0.75,)),
        *(
            pytest.param(arch, variant, WIDTHS, marks=pytest.mark.slow)
            for arch in SHAPES
            for variant in VARIANTS
        ),
    ],
)
def test_the_exported_file_equals_the_network(
    arch: str, variant: str, widths: tuple[float, ...], tmp_path: Path
) -> None:
    from oat_edge.exporters.to_onnx import export
    from oat_edge.runtime.ort import OrtRunner
    from oat_edge.runtime.runner import RunnerIO

    shape, changes = SHAPES[arch], VARIANTS[variant]
    spec, network = spec_of(arch, shape, **changes), make_network(arch, shape, **changes)
    io = RunnerIO(image_shape=shape, num_classes=10, lambdas=spec.lambdas)
    images = torch.rand(len(LAMBDAS), *shape, generator=torch.Generator().manual_seed(7))
    lam = torch.tensor(LAMBDAS)
    for width in widths:
        artifact = export(
            fold(network, width), spec, width=width, folder=tmp_path, checkpoint_sha256="0" * 64
        )
        with OrtRunner(tmp_path / artifact.file, io, threads=1) as runner:
            got = runner.infer(images.numpy(), lam.numpy())
        with torch.no_grad():
            expected = network(images, lam, width).numpy()
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_only_a_single_branch_makes_lambda_continuous_at_zero() -> None:
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    steps = {}
    for conditioning in ("film", "table", "single-bn"):
        folded = fold(make_network(conditioning=conditioning), 1.0)
        at, above = (folded(images, torch.full((4,), lam)) for lam in (0.0, 1e-5))
        steps[conditioning] = float((above - at).abs().max())
    assert steps["single-bn"] < 1e-3 < 0.1 < min(steps["film"], steps["table"])


@torch.no_grad()
def test_a_widths_head_is_its_own() -> None:
    network = make_network(heads="per-width")
    images, lam = torch.rand(4, 1, 8, 8), torch.tensor([0.0, 0.1, 0.5, 1.0])
    before = [network(images, lam, width) for width in WIDTHS]
    (heads,) = (module for module in network.modules() if isinstance(module, WidthHeads))
    heads.heads[1].bias.add_(1.0)
    for index, width in enumerate(WIDTHS):
        offset = 1.0 if index == 1 else 0.0
        torch.testing.assert_close(network(images, lam, width), before[index] + offset)


def test_heads_start_as_slices_of_the_shared_one_and_cost_what_they_hold() -> None:
    shared, own = (make_state(heads=heads) for heads in ("shared", "per-width"))
    name = "backbone.net.fc"
    for index, channels in enumerate((64, 96, 128)):
        weight, bias = (own[f"{name}.heads.{index}.{part}"] for part in ("weight", "bias"))
        assert torch.equal(weight, shared[f"{name}.weight"][:, :channels])
        assert torch.equal(bias, shared[f"{name}.bias"])
    count = {one: sum(t.numel() for t in state.values()) for one, state in
             (("shared", shared), ("own", own))}  # fmt: skip
    assert count["own"] - count["shared"] == (64 + 1) * 10 + (96 + 1) * 10


def make_state(**changes: object) -> dict[str, Tensor]:
    from oat_edge.nn.zoo import build_network

    return build_network(spec_of(**changes)).state_dict()


def test_tables_replace_films_and_stand_where_they_stood() -> None:
    film, table = make_network(), make_network(conditioning="table")
    for (name, one), (_, other) in zip(film.norms(), table.norms(), strict=True):
        assert (one.film is None) == (other.film is None), name
        if other.film is not None:
            shape = len(PAPER_KNOTS), one.branch(adversarial=True, width_index=2).num_features
            assert [tuple(p.shape) for p in other.film.parameters()] == [shape, shape]
    # λ must reach what has no second batch norm any more.
    single = make_network(conditioning="single-bn")
    assert all(norm.film is not None for _, norm in single.norms())
    num_norms = {name: name.count("running_mean") for name in single.state_dict()}
    assert sum(num_norms.values()) == len(WIDTHS) * len(single.norms())


class AllConvolutional(nn.Module):
    """The head is a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.bn(self.conv(x)))).mean((2, 3))


@torch.no_grad()
def test_a_head_may_be_a_convolution() -> None:
    network = convert(
        AllConvolutional(), widths=(0.5, 1.0), lambdas=(0.0, 1.0), image_shape=(3, 8, 8),
        heads="per-width",
    ).eval()  # fmt: skip
    assert [tuple(h.weight.shape) for h in network.backbone.head.heads] == [
        (4, 4, 1, 1), (4, 8, 1, 1),
    ]  # fmt: skip
    images, lam = torch.rand(2, 3, 8, 8), torch.tensor([0.0, 1.0])
    for width in network.widths:
        torch.testing.assert_close(fold(network, width)(images, lam), network(images, lam, width))


@pytest.mark.parametrize("conditioning", ["table", "single-bn"])
def test_what_makes_no_sense_is_refused_in_one_line(conditioning: str) -> None:
    settings = {"widths": (1.0,), "image_shape": (3, 8, 8), "conditioning": conditioning}
    for changes, says in (
        ({"lambdas": (1.0,)}, "only λ is 1: a dedicated"),
        ({"lambdas": (0.0, 1.0), "encoding": "dct"}, "only 'film' encodes λ"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            convert(AllConvolutional(), **settings, **changes)
        assert "\n" not in str(caught.value)
