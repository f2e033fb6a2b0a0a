"""Networks whose gradients lie are flagged, honest ones are not: at the level of the checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from oat_edge.attacks.masking import gradient_checks
from oat_edge.attacks.stages import run_stage, still_right
from oat_edge.evaluation.checks import Check, check_randomised
from oat_edge.nn.fold import fold
from oat_edge.train.checkpoint import load_checkpoint
from tests.toy import EPS, toy_images, toy_logits

Net = Callable[[Tensor], Tensor]
NUM = 60  # with fewer than fifty, checks that compare attacks clear nobody


def found(net: Net, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], eps: float):
    """All checks that see one network and PGD-20 only."""
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    right = run_stage("pgd20", net, x, y, eps=eps, seed=0, num_classes=10).right

    def infer(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            return net(torch.from_numpy(image)).numpy()

    checks = [
        check_randomised(infer, images, labels),
        *gradient_checks(net, x, y, right, eps=eps, seed=0),
    ]
    assert all(check.evidence for check in checks)
    return checks


def flags(*what):
    """Names of the checks that flag; all must have been made."""
    checks = found(*what)
    names = [check.name for check in checks]
    assert names == ["randomised output", "zero gradient", "single step", "restarts", "growing ε"]
    assert all(check.flagged is not None for check in checks)
    return {check.name for check in checks if check.flagged}


@pytest.fixture(scope="module")
def digits_net(trained_run: Path):
    from oat_edge.data import load

    checkpoint = load_checkpoint(trained_run)
    test = load("digits", train_samples=600).test
    folded = fold(checkpoint.network, 1.0)
    return folded, test.images[:NUM], test.labels[:NUM], checkpoint.spec.eps


@pytest.fixture(scope="module", params=["digits", "toy"])
def honest(request):
    if request.param == "toy":
        return toy_logits(), *toy_images(NUM), EPS
    folded, images, labels, eps = request.getfixturevalue("digits_net")
    return folded.at(torch.tensor([1.0])), images, labels, eps


def test_the_network_is_good_enough_for_these_tests(honest):
    net, images, labels, eps = honest
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    right = run_stage("pgd20", net, x, y, eps=eps, seed=0, num_classes=10).right
    assert still_right(net, x, y).float().mean() > 0.6 and 0.02 < right.float().mean() < 0.7


def test_an_honest_network_is_not_flagged(honest):
    assert flags(*honest) == set()


def test_the_standard_branch_is_honest_too(digits_net):
    folded, *rest = digits_net
    assert flags(folded.at(torch.tensor([0.0])), *rest) == set()


def test_logits_so_large_that_the_cross_entropy_saturates_are_flagged(honest):
    net, *rest = honest
    assert "zero gradient" in flags(lambda x: 1e4 * net(x), *rest)


def test_an_input_that_is_quantised_is_flagged(honest):
    """Rounding to four bits passes no gradient."""
    net, *rest = honest
    found = flags(lambda x: net((15 * x).round() / 15), *rest)
    assert {"zero gradient", "growing ε"} <= found


def test_noise_anew_in_every_pass_is_flagged(honest):
    net, *rest = honest
    generator = torch.Generator().manual_seed(0)

    def noisy(x: Tensor) -> Tensor:
        return net(x + 0.02 * torch.randn(x.shape, generator=generator))

    assert "randomised output" in flags(noisy, *rest)


def test_a_wavy_loss_in_which_long_walks_get_lost_is_flagged(honest):
    """The gradient of the ripples hides that of the network: no step leads far."""
    net, *rest = honest

    def wavy(x: Tensor) -> Tensor:
        return net(x + 0.01 * torch.sin(2000 * x))

    assert flags(wavy, *rest)


def test_gradients_that_point_the_wrong_way_are_flagged(honest):
    net, *rest = honest

    def backwards(x: Tensor) -> Tensor:
        return net(2 * x.detach() - x)

    assert "growing ε" in flags(backwards, *rest)


def test_of_few_images_what_is_compared_is_not_cleared(honest):
    net, images, labels, eps = honest
    few = {check.name: check for check in found(net, images[:12], labels[:12], eps)}
    for name in ("single step", "restarts"):
        assert few[name].flagged is None
        assert few[name].evidence == "needs 50 images or more, there were 12"
    # What is counted, not compared, needs no number.
    for name in ("randomised output", "zero gradient", "growing ε"):
        assert few[name].flagged is False


def checks_by_name(net: Net, num: int = 12, **options: object) -> dict[str, Check]:
    images, labels = toy_images(num)
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    right = torch.zeros(num, dtype=torch.bool)
    found = gradient_checks(net, x, y, right, eps=EPS, seed=0, **options)  # type: ignore[arg-type]
    return {check.name: check for check in found}


def test_the_radius_grows_to_half_the_range_and_the_evidence_says_what_was_seen():
    evidence = checks_by_name(toy_logits())["growing ε"].evidence
    shares = [float(part.rpartition(" % at ")[0].split()[-1]) for part in evidence.split(", ")[:3]]
    assert "at 32/255" in evidence and "at 64/255" in evidence and "at 127.5/255" in evidence
    assert shares == sorted(shares, reverse=True)


def test_checks_are_the_same_at_any_batch_size_but_for_the_random_starts():
    whole, parts = (checks_by_name(toy_logits(), batch_size=size) for size in (12, 5))
    for name in ("zero gradient", "growing ε"):
        assert whole[name].flagged == parts[name].flagged == False  # noqa: E712
    assert whole["zero gradient"] == parts["zero gradient"]


def test_zero_gradients_of_images_that_are_wrong_anyway_are_no_sign():
    def saturated(x: Tensor) -> Tensor:
        """Zero gradient everywhere, and nothing is right."""
        return torch.stack([x.sum(dim=(1, 2, 3)) * 0 - 1] * 5 + [x.sum(dim=(1, 2, 3)) * 0], dim=1)

    check = checks_by_name(saturated)["zero gradient"]
    assert not check.flagged and "at 0 of 0 images" in check.evidence


def test_the_network_keeps_its_parameters_without_gradients(digits_net):
    folded, images, labels, eps = digits_net
    found(folded.at(torch.tensor([1.0])), images[:4], labels[:4], eps)
    assert all(p.grad is None and not p.requires_grad for p in folded.parameters())
    assert not folded.training
