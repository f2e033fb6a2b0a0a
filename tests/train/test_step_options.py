"""What the options of a step change, and that without them it computes what it always did."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oat_edge.attacks.pgd import pgd, uniform_noise
from oat_edge.nn.fold import refold
from oat_edge.nn.network import OATSNetwork
from oat_edge.train.distributed import ALONE
from oat_edge.train.shard import Shard, shard
from oat_edge.train.step import OATSStep, StepOptions
from tests.conftest import make_network

INDEX = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 5])
EPS = 16 / 255


class Recorded(OATSStep):
    """Notes which widths were attacked."""

    def craft(self, batch, width, film, generator):  # type: ignore[no-untyped-def]
        self.attacked = [*getattr(self, "attacked", []), width]
        return super().craft(batch, width, film, generator)


def _step(network: OATSNetwork, **options: object) -> Recorded:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return Recorded(
        network,
        optimizer,
        eps=EPS,
        attack_steps=2,
        options=StepOptions(**options),  # type: ignore[arg-type]
    )


def _batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(len(INDEX), 1, 8, 8, generator=generator)
    return images, torch.randint(0, 10, (len(INDEX),), generator=generator), INDEX


def _shard(step: OATSStep, labels: Tensor) -> Shard:
    images, _, index = _batch()
    return shard(images, labels, index, step.knots, ALONE)


def _plain_step(network: OATSNetwork, step: OATSStep, generator: torch.Generator) -> Tensor:
    """OATS's loss in one piece, as the step had it before there were options."""
    images, labels, index = _batch()
    network.train()
    step.optimizer.zero_grad(set_to_none=True)
    total, lam, hat = torch.zeros(()), step.knots[index], F.one_hot(index, 6).float()
    clean, robust = lam == 0, lam > 0
    for width in network.widths:
        film = network.film_tables()
        out = network.train_pass(images[clean], hat[clean], width, adversarial=False, film=film)
        loss = torch.zeros(()) + F.cross_entropy(out, labels[clean], reduction="sum")
        x, y = images[robust], labels[robust]
        refold(step.folded[width], network, width)
        logits = step.folded[width].at(lam[robust])
        noise = uniform_noise(x, EPS, generator)
        x_adv = pgd(logits, x, y, eps=EPS, steps=2, alpha=step.attack_alpha, noise=noise)
        for weight, version in ((1 - lam[robust], x), (lam[robust], x_adv)):
            out = network.train_pass(version, hat[robust], width, adversarial=True, film=film)
            loss = loss + (weight * F.cross_entropy(out, y, reduction="none")).sum()
        loss = loss / len(images)
        torch.autograd.backward(loss)
        total += loss.detach()
    return total / len(network.widths)


def test_without_options_loss_and_statistics_are_the_same_to_the_last_bit() -> None:
    network = make_network()
    plain = copy.deepcopy(network)
    loss = _step(network)(*_batch(), torch.Generator().manual_seed(1))
    expected = _plain_step(plain, _step(plain), torch.Generator().manual_seed(1))
    assert torch.equal(loss, expected)
    buffers = dict(network.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in plain.named_buffers())
    # FiLM's gradients meet in the tables in another order here; all else is equal in bits.
    gradients = dict(network.named_parameters())
    for name, parameter in plain.named_parameters():
        exact = {} if "film" in name else {"rtol": 0.0, "atol": 0.0}
        torch.testing.assert_close(gradients[name].grad, parameter.grad, **exact)


def test_all_images_train_at_zero_and_above_with_a_weight_for_each() -> None:
    network, weight = make_network(widths=(1.0,)), 0.3
    plain = copy.deepcopy(network)
    images, labels, index = _batch()
    index = index.clamp(min=1)
    loss = _step(network, all_clean=weight)(images, labels, index, torch.Generator().manual_seed(1))
    step = _step(plain)
    plain.train()
    step.optimizer.zero_grad(set_to_none=True)
    film = plain.film_tables()
    zero = F.one_hot(torch.zeros_like(index), 6).float()
    clean = plain.train_pass(images, zero, 1.0, adversarial=False, film=film)
    # What follows a clean pass is what a batch without λ = 0 does.
    robust = step.loss(images, labels, index, 1.0, film, torch.Generator().manual_seed(1))
    expected = weight * F.cross_entropy(clean, labels) + (1 - weight) * robust
    torch.testing.assert_close(loss, expected.detach())
    torch.autograd.backward(expected)
    gradients = dict(network.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, msg=name)
    buffers = dict(network.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in plain.named_buffers())


def test_the_sandwich_trains_both_ends_and_some_between() -> None:
    widths = (0.25, 0.5, 0.75, 1.0)
    network = make_network(widths=widths)
    step, num_steps = _step(network, sandwich=1), 12
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        step(*_batch(), generator)
    counts = {width: step.attacked.count(width) for width in widths}
    assert counts[0.25] == counts[1.0] == num_steps
    assert counts[0.5] + counts[0.75] == num_steps
    assert min(counts.values()) > 0
    tracked = [
        {width: int(norm.clean[i].num_batches_tracked) for i, width in enumerate(widths)}  # type: ignore[index, arg-type]
        for _, norm in network.norms()
    ]
    assert all(one == counts for one in tracked), "a width that is not trained sees no image"


@pytest.mark.parametrize("share", ["off", "widest", "random"])
def test_a_shared_attack_is_one_attack_per_step(share: str) -> None:
    network = make_network()
    step, generator = _step(network, share_attack=share), torch.Generator().manual_seed(0)
    for _ in range(8):
        step(*_batch(), generator)
    if share == "off":
        assert step.attacked == [0.5, 0.75, 1.0] * 8
    else:
        assert len(step.attacked) == 8
        assert set(step.attacked) == ({1.0} if share == "widest" else {0.5, 0.75, 1.0})


def _gradients(**options: object) -> dict[str, Tensor]:
    network = make_network(widths=(0.5, 1.0))
    # One shared attack: the order of the widths then draws nothing.
    step = _step(network, share_attack="widest", **options)
    step(*_batch(), torch.Generator().manual_seed(2))
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def test_the_widest_width_teaches_and_is_not_taught() -> None:
    """Each width has batch norms of its own: their gradients come from its own loss alone."""
    plain, distilled = _gradients(), _gradients(distill=True)
    for name, gradient in plain.items():
        if ".clean.1." in name or ".adversarial.1." in name:
            assert torch.equal(gradient, distilled[name]), name
        if ".clean.0.weight" in name or ".adversarial.0.weight" in name:
            assert not torch.equal(gradient, distilled[name]), name


def test_a_taught_width_does_not_look_at_labels() -> None:
    network = make_network(widths=(0.5, 1.0)).train()
    step, film = _step(network), network.film_tables()
    _, labels, _ = _batch()
    x_adv = step.craft(_shard(step, labels), 0.5, film, torch.Generator())
    _, teacher = step.passes(_shard(step, labels), 1.0, film, x_adv)
    assert teacher.clean is not None and teacher.robust is not None
    assert (len(teacher.clean), len(teacher.robust)) == (3, 11)
    taught = [
        step.passes(_shard(step, some), 0.5, film, x_adv, teacher)[0]
        for some in (labels, (labels + 1) % 10)
    ]
    assert torch.equal(*taught)


@pytest.mark.parametrize("attack", ["pgd", "n-fgsm"])
@pytest.mark.parametrize(("loss", "uses_labels"), [("oat", True), ("trades", False)])
def test_trades_attacks_the_networks_own_output(attack: str, loss: str, uses_labels: bool) -> None:
    network = make_network(widths=(1.0,))
    step, film = _step(network, loss=loss, attack=attack), network.film_tables()
    images, labels, index = _batch()
    found = [
        step.craft(_shard(step, some), 1.0, film, torch.Generator().manual_seed(0))
        for some in (labels, (labels + 1) % 10)
    ]
    assert found[0] is not None and found[1] is not None
    assert torch.equal(*found) != uses_labels
    logits, lam = step.folded[1.0].at(step.knots[index[index > 0]]), index > 0
    with torch.no_grad():
        before, after = logits(images[lam]).log_softmax(1), logits(found[0]).log_softmax(1)
        noise = torch.empty(found[0].shape).uniform_(-EPS, EPS)
        at_random = logits((images[lam] + noise).clamp(0, 1)).log_softmax(1)
    moved, by_noise = (
        F.kl_div(other, before, reduction="batchmean", log_target=True)
        for other in (after, at_random)
    )
    assert moved > by_noise, "the attack moves the output further than noise does"


def test_trades_at_lambda_one_alone_sees_clean_images_too() -> None:
    network = make_network(widths=(1.0,), lambdas=(1.0,))
    images, labels, _ = _batch()
    _step(network, loss="trades")(images, labels, torch.zeros_like(labels), torch.Generator())
    counts = [b for n, b in network.named_buffers() if n.endswith("num_batches_tracked")]
    assert all(int(count) == 2 for count in counts)


@pytest.mark.parametrize("index", [[0] * 8, [1, 5] * 4])
@pytest.mark.parametrize(
    "options",
    [
        {"distill": True, "awp_gamma": 0.005},
        {"loss": "trades", "share_attack": "random", "label_smoothing": 0.1},
        {"attack": "n-fgsm", "distill": True, "sandwich": 0},
    ],
)
def test_a_batch_of_one_branch_only_trains(index: list[int], options: dict[str, object]) -> None:
    network = make_network()
    images = torch.rand(8, 1, 8, 8)
    loss = _step(network, **options)(
        images, torch.arange(8), torch.tensor(index), torch.Generator()
    )
    assert torch.isfinite(loss)
