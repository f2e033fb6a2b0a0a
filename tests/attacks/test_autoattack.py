from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable

import numpy as np
import pyautoattack
import pytest
import torch
from torch import Tensor

from oat_edge.attacks.autoattack import PARTS, autoattack_part, check_num_classes, num_targets
from oat_edge.errors import DependencyError, InputError
from tests.toy import EPS, toy_images, toy_logits

Logits = Callable[[Tensor], Tensor]
# Less than there are images: AutoAttack draws anew for every batch, and so must the parts.
BATCH = 8


def toy_tensors(num: int, num_classes: int = 5) -> tuple[Tensor, Tensor]:
    images, labels = toy_images(num, num_classes)
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels)


def part(name: str, logits: Logits, x: Tensor, y: Tensor, **changes: object) -> tuple:
    settings = {"eps": EPS, "seed": 0, "num_classes": 5, "batch_size": BATCH, **changes}
    return autoattack_part(name, logits, x, y, **settings)  # type: ignore[arg-type]


def test_stage_by_stage_is_bit_for_bit_the_authors_own_run() -> None:
    """Same flags and same adversarial images as `run_standard_evaluation` gives in one go."""
    logits, (x, y) = toy_logits(), toy_tensors(14)
    with torch.random.fork_rng():
        whole = pyautoattack.AutoAttack(logits, eps=EPS, norm="Linf", seed=3, version="standard")
        whole.apgd_targeted.n_target_classes = whole.fab.n_target_classes = 4
        assert whole.attacks_to_run == [*PARTS.values()]
        expected, predicted = whole.run_standard_evaluation(x, y, batch_size=BATCH)
    right, found = logits(x).argmax(dim=1) == y, x.clone()
    num_clean, fooled_by = int(right.sum()), {}
    for name in PARTS:
        left = right.nonzero()[:, 0]
        x_adv, still, _ = part(name, logits, x[left], y[left], seed=3)
        found[left], right[left] = x_adv, still
        fooled_by[name] = len(left) - int(still.sum())
    assert torch.equal(right, predicted == y)
    assert torch.equal(found, expected)
    # Otherwise nothing was compared: some are wrong clean, some fall to each half, some stay.
    assert num_clean < 14 and fooled_by["apgd-ce"] and fooled_by["apgd-t"] and right.any()


def test_nothing_outside_is_changed_printed_or_logged(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("auto-attack")
    before = logger.level, logger.propagate, list(logger.handlers)
    x, y = toy_tensors(6)

    def trace(*_: object) -> None:
        return None

    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    kept = sys.gettrace()
    with caplog.at_level(logging.DEBUG):
        sys.settrace(trace)
        try:
            part("apgd-ce", lambda image: toy_logits()(image).softmax(dim=1), x, y)
            assert sys.gettrace() is trace
        finally:
            sys.settrace(kept)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1] and random.getstate() == states[2]
    assert (logger.level, logger.propagate, logger.handlers) == before
    assert caplog.records == [] and tuple(capfd.readouterr()) == ("", "")


def test_an_attack_that_fails_midway_leaves_no_trace_either() -> None:
    logger, state, trace = logging.getLogger("auto-attack"), torch.get_rng_state(), sys.gettrace()
    before, num_passes = (logger.level, logger.propagate, list(logger.handlers)), 0
    x, y = toy_tensors(6)

    def breaks(image: Tensor) -> Tensor:
        nonlocal num_passes
        num_passes += 1
        if num_passes > 20:
            raise KeyboardInterrupt
        return toy_logits()(image)

    with pytest.raises(KeyboardInterrupt):
        part("apgd-ce", breaks, x, y)
    assert (logger.level, logger.propagate, logger.handlers) == before
    assert torch.equal(torch.get_rng_state(), state) and sys.gettrace() is trace


@pytest.mark.parametrize("level", [logging.NOTSET, logging.CRITICAL])
def test_the_authors_own_warnings_come_back_whatever_logging_is_set_to(level: int) -> None:
    x, y = toy_tensors(6)
    logger = logging.getLogger("auto-attack")
    logger.setLevel(level)
    try:
        _, _, honest = part("apgd-ce", toy_logits(), x, y)
        _, _, said = part("apgd-ce", lambda image: toy_logits()(image).softmax(dim=1), x, y)
    finally:
        logger.setLevel(logging.NOTSET)
    assert honest == ()
    (text,) = said
    assert "probability distribution" in text and "flags_doc" not in text and text == text.strip()


def test_a_randomised_network_and_one_without_gradients_are_told() -> None:
    x, y = toy_tensors(6)
    noise = torch.Generator().manual_seed(0)

    def noisy(image: Tensor) -> Tensor:
        logits = toy_logits()(image)
        return logits + torch.randn(logits.shape, generator=noise)

    assert any("randomized" in text for text in part("apgd-ce", noisy, x, y)[2])
    masked = part("apgd-t", lambda image: toy_logits()((15 * image).round() / 15), x, y)[2]
    assert any("zero gradient" in text for text in masked)
    assert len(set(masked)) == len(masked)


def test_what_comes_back_is_in_the_ball_and_fools_where_it_says_so() -> None:
    logits, (x, y) = toy_logits(), toy_tensors(12)
    clean = logits(x).argmax(dim=1) == y
    x, y = x[clean], y[clean]
    x_adv, right, _ = part("apgd-t", logits, x, y)
    assert (x_adv - x).abs().max() <= EPS + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
    assert torch.equal(logits(x_adv).argmax(dim=1) == y, right)
    assert torch.equal(x_adv[right], x[right]) and not right.all() and right.any()


def test_an_attack_that_left_the_ball_would_not_be_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wide(self: object, x: Tensor, y: Tensor, **_: object) -> tuple[Tensor, Tensor]:
        return x + 2 * EPS, y

    monkeypatch.setattr(pyautoattack.AutoAttack, "run_standard_evaluation", wide)
    with pytest.raises(RuntimeError, match="left the ε-ball"):
        part("apgd-ce", toy_logits(), *toy_tensors(3))


def test_an_image_that_is_no_number_is_not_inside_the_ball(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(self: object, x: Tensor, y: Tensor, **_: object) -> tuple[Tensor, Tensor]:
        return x * float("nan"), y

    monkeypatch.setattr(pyautoattack.AutoAttack, "run_standard_evaluation", lost)
    with pytest.raises(RuntimeError, match="left the ε-ball"):
        part("apgd-ce", toy_logits(), *toy_tensors(3))


@pytest.mark.parametrize("name", ["apgd-ce", "square-aa"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_wrong_though_their_argmax_is_the_label(
    bad: float, name: str
) -> None:
    """Images 1 and BATCH + 1, in different batches, are so bright that the label's logit breaks."""
    logits, (x, y) = toy_logits(), toy_tensors(12)
    clean = logits(x).argmax(dim=1) == y
    x, y = x[clean][: BATCH + 2].clone(), y[clean][: BATCH + 2].clone()
    assert len(x) == BATCH + 2
    broken = torch.tensor([1, BATCH + 1])
    x[broken], y[broken] = 1.0, 2

    def breaks(image: Tensor) -> Tensor:
        bright = (image.flatten(1).mean(dim=1) > 1 - EPS - 0.01)[:, None]
        at_label = torch.nn.functional.one_hot(torch.tensor(2), 5).bool()
        return torch.where(bright & at_label, bad, logits(image))

    assert (breaks(x).argmax(dim=1) == y).all(), "the argmax alone would not tell"
    _, right, _ = part(name, breaks, x, y)
    _, honest, _ = part(name, logits, x, y)
    others = torch.ones(len(x), dtype=torch.bool)
    others[broken] = False
    assert not right[broken].any()
    assert right[others].any() and honest[others].any()


@pytest.mark.parametrize("num_classes", [2, 3])
def test_too_few_classes_are_refused_with_what_to_do(num_classes: int) -> None:
    with pytest.raises(InputError, match=rf"need 4 classes .* has {num_classes}: use --attack pgd"):
        part("apgd-ce", toy_logits(num_classes), *toy_tensors(3), num_classes=num_classes)


@pytest.mark.parametrize("num_classes", [4, 5, 8])
def test_few_classes_are_all_targets(num_classes: int) -> None:
    """With the nine targets of CIFAR-10 the targeted attacks would index past the classes."""
    check_num_classes(num_classes)
    logits, (x, y) = toy_logits(num_classes), toy_tensors(8, num_classes)
    clean = logits(x).argmax(dim=1) == y
    for name in ("apgd-t", "fab-t"):
        _, right, said = part(name, logits, x[clean], y[clean], num_classes=num_classes)
        assert said == () and right.shape == (int(clean.sum()),)
    assert num_targets(num_classes) == num_classes - 1


def test_ten_classes_and_more_get_the_published_nine_targets() -> None:
    assert [num_targets(n) for n in (9, 10, 100)] == [8, 9, 9]


def test_all_targets_are_tried() -> None:
    """Two logits decide, and the runner-up of the clean image is a decoy no attack can reach."""
    x, y = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)

    def logits(image: Tensor) -> Tensor:
        mean = image.mean(dim=(1, 2, 3))
        flat = 0 * mean
        return torch.stack([flat + 1, flat + 0.9, flat + 0.8, flat + 0.7, 20 * (mean - 0.5)], dim=1)

    _, right, _ = part("apgd-t", logits, x, y, eps=0.1)
    assert not right.any()


def test_without_the_package_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(DependencyError) as caught:
        part("apgd-ce", toy_logits(), *toy_tensors(3))
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    assert str(caught.value).endswith("AutoAttack needs it: pip install 'oat-edge[attack]'")
