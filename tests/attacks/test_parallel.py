"""An attack in parts gives every image what it gets without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oat_edge.attacks.parallel import MAX_PARTS, MIN_SAMPLES, in_parts
from oat_edge.attacks.pgd import pgd, uniform_noise
from oat_edge.nn.fold import fold
from oat_edge.train.step import OATSStep, StepOptions
from tests.conftest import make_network


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(among=st.lists(st.booleans(), min_size=1, max_size=60), count=st.integers(1, 9))
@settings(max_examples=40)
def test_every_image_keeps_its_noise_and_its_place(among: list[bool], count: int) -> None:
    mask = torch.tensor(among)
    x = torch.rand(sum(among), 1, 2, 2, generator=seeded(1))
    sizes = []

    def attack(part: slice, generator: torch.Generator, among: Tensor) -> Tensor:
        sizes.append((len(x[part]), torch.get_num_threads()))
        return x[part] + uniform_noise(x[part], 0.1, generator, among)

    whole, ours = seeded(), seeded()
    with threads(count):
        found = in_parts(attack, mask, ours)
        assert torch.get_num_threads() == count
    assert torch.equal(found, x + uniform_noise(x, 0.1, whole, mask))
    assert torch.equal(ours.get_state(), whole.get_state())
    parts = len(sizes)
    assert parts <= min(count, MAX_PARTS) and sum(size for size, _ in sizes) == len(x)
    assert sum(own for _, own in sizes) <= count
    if parts > 1:
        assert min(size for size, _ in sizes) >= MIN_SAMPLES
    elif count > 1:
        assert len(x) < 2 * MIN_SAMPLES


def test_one_thread_is_one_plain_call() -> None:
    mask, generator, calls = torch.ones(40, dtype=torch.bool), seeded(), []

    def attack(*given: object) -> Tensor:
        calls.append(given)
        return torch.zeros(40)

    with threads(1):
        in_parts(attack, mask, generator)
    ((part, own, among),) = calls
    assert (part, own is generator, among is mask) == (slice(None), True, True)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_threads_share_a_network_and_keep_their_lambdas(dtype: torch.dtype | None) -> None:
    network = make_network().to(memory_format=torch.channels_last)
    if dtype is None:
        network = network.double()
    folded = fold(network, 0.5, compute_dtype=dtype)
    own = next(folded.buffers()).dtype
    x = torch.rand(24, 1, 8, 8, generator=seeded(1)).to(own)
    y = torch.randint(0, 10, (24,), generator=seeded(2))
    lam = torch.tensor(network.knots)[torch.arange(24) % 6].to(own)

    def attack(part: slice, generator: torch.Generator, among: Tensor) -> Tensor:
        logits, few = folded.at(lam[part]), {"eps": 0.1, "steps": 3, "alpha": 0.05}
        return pgd(logits, x[part], y[part], generator=generator, among=among, **few)

    expected = attack(slice(None), seeded(), torch.ones(24, dtype=torch.bool))
    with threads(3):
        found = in_parts(attack, torch.ones(24, dtype=torch.bool), seeded())
    differ = (found - expected).abs() > 1e-6
    # Where a gradient is next to nothing, rounding decides its sign.
    assert differ.double().mean() < (0.001 if dtype is None else 0.1)


def test_what_fails_in_a_part_comes_through() -> None:
    def attack(part: slice, generator: torch.Generator, among: Tensor) -> Tensor:
        raise ValueError(f"part {part.start}")

    with threads(2):
        with pytest.raises(ValueError, match="part 0"):
            in_parts(attack, torch.ones(2 * MIN_SAMPLES, dtype=torch.bool), seeded())
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("options", [{}, {"loss": "trades"}, {"attack": "n-fgsm"}])
def test_a_step_in_parts_is_the_step(options: dict[str, str]) -> None:
    ended = []
    for count in (1, 2):
        network = make_network().double()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        step = OATSStep(
            network,
            optimizer,
            eps=8 / 255,
            attack_steps=2,
            options=StepOptions(**options),  # type: ignore[arg-type]
        )
        images = torch.rand(30, 1, 8, 8, generator=seeded()).double()
        labels = torch.randint(0, 10, (30,), generator=seeded(1))
        with threads(count):
            loss = step(images, labels, torch.arange(30) % 6, seeded(2))
        ended.append([loss, *network.parameters()])
    for found, expected in zip(*ended, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-6)
