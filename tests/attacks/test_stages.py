from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oat_edge.attacks import stages
from oat_edge.attacks.stages import ATTACKS, COST, attack_settings, run_stage, still_right, to_grid
from oat_edge.evaluation.pack import levels
from tests.toy import EPS, toy_images, toy_logits

ANY_EPS = st.one_of(st.floats(0, 1), st.integers(0, 255).map(lambda k: k / 255))
WHITE_BOX = ("pgd20", "apgd-ce", "apgd-t", "fab-t")


def attacked(stage: str, **changes: Any) -> tuple[Tensor, Tensor, stages.StageResult]:
    images, labels = toy_images(12)
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    clean = still_right(toy_logits(), x, y)
    x, y = x[clean], y[clean]
    settings = {"eps": EPS, "seed": 0, "num_classes": 5, **changes}
    return x, y, run_stage(stage, toy_logits(), x, y, **settings)


CASES = [
    *((stage, on_grid, eps) for stage in WHITE_BOX for on_grid in (False, True)
      for eps in (EPS, 0.1)),
    ("square-aa", True, EPS),  # 5000 queries, whatever the network
]  # fmt: skip


@pytest.mark.parametrize(("stage", "on_grid", "eps"), CASES)
def test_right_is_what_the_network_says_of_images_in_the_ball(
    stage: str, on_grid: bool, eps: float
) -> None:
    x, y, result = attacked(stage, on_grid=on_grid, eps=eps)
    assert result.x_adv.shape == x.shape and result.x_adv.dtype == torch.float32
    assert torch.equal(result.right, still_right(toy_logits(), result.x_adv, y))
    # FAB stops at the border of the class, and rounding takes its images back over it.
    assert result.right.any() and (stage in ("fab-t", "square-aa") or not result.right.all())
    assert (result.x_adv - x).abs().max() <= eps + 1e-6
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1 and not result.x_adv.requires_grad
    if on_grid:
        step = (255 * result.x_adv.double()).round() - (255 * x.double()).round()
        assert step.abs().max() <= levels(eps)
        assert torch.equal((255 * result.x_adv).round() / 255, result.x_adv)


@pytest.mark.parametrize("stage", ["pgd20", "apgd-ce"])
def test_the_seed_alone_decides(stage: str) -> None:
    torch.manual_seed(1)
    first = attacked(stage)[2]
    torch.manual_seed(2)
    assert torch.equal(attacked(stage)[2].x_adv, first.x_adv)
    assert not torch.equal(attacked(stage, seed=1)[2].x_adv, first.x_adv)


def test_a_restart_attacks_only_what_the_ones_before_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    own = stages.pgd

    def counted(logits: object, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
        assert settings["steps"] == 20 and settings["keep_best"]
        assert settings["alpha"] == pytest.approx(EPS / 4)
        seen.append(len(x))
        return own(logits, x, y, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "pgd", counted)
    x, _, result = attacked("pgd20")
    assert seen[0] == len(x) and len(seen) == 5 and seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0] and int(result.right.sum()) <= seen[-1]


def test_no_restart_follows_when_everything_is_fooled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    own = stages.pgd
    monkeypatch.setattr(stages, "pgd", lambda *a, **k: (seen.append(len(a[1])), own(*a, **k))[1])
    assert not attacked("pgd20", eps=0.5)[2].right.any()
    assert len(seen) == 1


def test_small_batches_cover_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    own = stages.pgd
    monkeypatch.setattr(stages, "pgd", lambda *a, **k: (seen.append(len(a[1])), own(*a, **k))[1])
    x, y, result = attacked("pgd20", batch_size=5, eps=1e-4)
    assert seen == [5, 5, len(x) - 10] * 5
    assert (result.x_adv != x).flatten(1).any(dim=1).all()
    assert torch.equal(result.right, still_right(toy_logits(), result.x_adv, y, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_are_wrong(bad: float) -> None:
    logits = torch.tensor([[3.0, 1.0], [3.0, bad], [bad, 1.0], [1.0, 3.0]])
    right = still_right(lambda x: logits, torch.zeros(4, 1), torch.tensor([0, 0, 0, 0]))
    assert right.tolist() == [True, False, False, False]


def test_still_right_keeps_the_order_at_any_batch_size() -> None:
    images, labels = toy_images(11)
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(np.roll(labels, 1))
    whole = still_right(toy_logits(), x, y)
    assert whole.any() and not whole.all()
    for batch_size in (1, 3, 10, 11, 99):
        assert torch.equal(still_right(toy_logits(), x, y, batch_size), whole)


@given(
    eps=ANY_EPS,
    pixels=st.lists(st.tuples(st.integers(0, 255), st.floats(-1, 1)), min_size=1),
)
def test_the_grid_image_is_the_nearest_one_inside_the_ball_in_integers(
    eps: float, pixels: list[tuple[int, float]]
) -> None:
    original = torch.tensor([p for p, _ in pixels])
    x = original.float() / 255
    x_adv = (x + eps * torch.tensor([d for _, d in pixels])).clamp(0, 1)
    result = to_grid(x_adv, x, eps)
    grid = (255 * result).round().to(torch.int64)
    assert (grid - original).abs().max() <= levels(eps) <= 255 * eps + 1e-6
    assert grid.min() >= 0 and grid.max() <= 255
    assert torch.equal(grid.float() / 255, result), "not a level"
    low, high = (original - levels(eps)).clamp(min=0), (original + levels(eps)).clamp(max=255)
    wanted = 255 * x_adv.double()
    nearest = wanted.round().clamp(low, high)
    assert ((grid - wanted).abs() <= (nearest - wanted).abs() + 1e-3).all()


@given(eps=ANY_EPS, pixel=st.integers(0, 255), outside=st.floats(-3, 3))
def test_even_what_lies_outside_is_rounded_to_the_inside(
    eps: float, pixel: int, outside: float
) -> None:
    x = torch.tensor([pixel]) / 255
    step = round(255 * to_grid(x + outside, x, eps).item()) - pixel
    assert abs(step) <= levels(eps) and 0 <= pixel + step <= 255


def test_every_stage_has_a_cost_and_the_attacks_contain_each_other() -> None:
    assert {stage for attack in ATTACKS.values() for stage in attack} == set(COST)
    apgd, whole = ATTACKS["apgd"], ATTACKS["autoattack"]
    assert whole[: len(apgd)] == apgd and ATTACKS["pgd20"] == ("pgd20",)


def settings_changes() -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        "attack": lambda: attack_settings("apgd", EPS, 0, 5),
        "eps": lambda: attack_settings("pgd20", EPS / 2, 0, 5),
        "seed": lambda: attack_settings("pgd20", EPS, 1, 5),
    }


@pytest.mark.parametrize("name", settings_changes())
def test_other_settings_say_so(name: str) -> None:
    assert settings_changes()[name]() != attack_settings("pgd20", EPS, 0, 5)


def test_settings_of_autoattack_name_the_implementation_its_version_and_the_targets() -> None:
    settings = attack_settings("autoattack", EPS, 0, 5)
    assert settings["implementation"].startswith("pyautoattack 0.")
    assert settings["targets"] == 4 and settings["queries"] == 5000
    assert settings["iterations"] == 100 and "queries" not in attack_settings("apgd", EPS, 0, 5)
