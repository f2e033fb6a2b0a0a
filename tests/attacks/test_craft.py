from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.attacks import craft
from oat_edge.attacks.craft import craft_pack, pack_settings
from oat_edge.attacks.stages import ATTACKS, attack_settings, still_right
from oat_edge.data import Dataset
from oat_edge.evaluation.pack import AttackPack, levels
from oat_edge.nn.fold import fold
from oat_edge.train.checkpoint import load_checkpoint
from tests.toy import EPS, LAMBDAS, Toy, toy_images

NUM = 36


def toy_pack(attack: str = "pgd20", num: int = 16, **changes: Any) -> AttackPack:
    images, labels = toy_images(num)
    settings = {"eps": EPS, "seed": 0, "lambdas": LAMBDAS, "num_classes": 5, **changes}
    return craft_pack(
        Toy(),  # type: ignore[arg-type]
        images,
        labels,
        np.arange(num),
        attack=attack,
        width=1.0,
        checkpoint_sha256="0" * 64,
        **settings,
    )


def right(pack: AttackPack, row: int) -> np.ndarray:
    """(N,) right clean and on the pack's images, by the network they were made on."""
    logits = Toy().at(torch.tensor([pack.lambdas[row]]))
    both = [torch.from_numpy(a).float() / 255 for a in (pack.images, pack.adversarial[row])]
    clean, attacked = (still_right(logits, x, torch.from_numpy(pack.labels)).numpy() for x in both)
    return clean & attacked


@pytest.fixture(scope="module")
def packs() -> dict[str, AttackPack]:
    return {attack: toy_pack(attack, NUM) for attack in ATTACKS}


def test_a_stronger_attack_leaves_no_image_that_a_weaker_one_has_fooled(packs) -> None:
    assert list(packs) == ["pgd20", "apgd", "autoattack"]
    for row, _ in enumerate(LAMBDAS):
        pgd, apgd, whole = (right(pack, row) for pack in packs.values())
        assert not (apgd & ~pgd).any() and not (whole & ~apgd).any()
        assert whole.any()
    shares = [np.mean([right(pack, row).mean() for row in (0, 1)]) for pack in packs.values()]
    assert shares[1] < shares[0], "APGD found nothing that PGD-20 had not: this compares nothing"


@pytest.mark.parametrize("attack", ATTACKS)
def test_packs_lie_on_the_grid_inside_the_ball_in_integers(attack, packs) -> None:
    pack = packs[attack]
    assert pack.adversarial.dtype == np.uint8 and pack.adversarial.shape == (2, NUM, 1, 4, 4)
    distance = np.abs(pack.adversarial.astype(np.int64) - pack.images.astype(np.int64))
    assert distance.max() == levels(EPS) == 32
    assert (pack.attack, pack.width, pack.lambdas, pack.eps) == (attack, 1.0, LAMBDAS, EPS)
    assert pack.settings == pack_settings(attack, EPS, 0, 5)
    assert pack.settings["stages"] == list(dict.fromkeys(["pgd20", *ATTACKS[attack]]))
    pgd = attack_settings("pgd20", EPS, 0, 5)
    if attack == "pgd20":
        assert pgd.items() <= pack.settings.items() and "pgd20" not in pack.settings
    else:
        assert pack.settings["pgd20"] == pgd
        assert pack.settings["iterations"] == 100 and pack.settings["seed"] == 0


@given(eps=st.floats(1 / 255, 1), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=15)
def test_any_radius_is_kept_exactly(eps: float, seed: int) -> None:
    pack = toy_pack(num=4, eps=eps, seed=seed, lambdas=(0.0,))
    distance = np.abs(pack.adversarial.astype(np.int64) - pack.images.astype(np.int64))
    assert distance.max() <= levels(eps) <= 255 * eps + 1e-6


@pytest.mark.parametrize("attack", ["pgd20", "apgd"])
def test_what_nothing_fools_is_attacked_all_the_same(attack, packs) -> None:
    """An engine that computes a little differently may fall where the network did not."""
    pack = packs[attack]
    for row, lam in enumerate(LAMBDAS):
        stays = np.flatnonzero(right(pack, row))
        assert len(stays)
        moved = (pack.adversarial[row, stays] != pack.images[stays]).any(axis=(1, 2, 3))
        assert moved.all()
        logits = Toy().at(torch.tensor([lam]))
        target = torch.from_numpy(pack.labels[stays])
        x, x_adv = (
            torch.from_numpy(a[stays]).float() / 255 for a in (pack.images, pack.adversarial[row])
        )
        before, after = (
            torch.nn.functional.cross_entropy(logits(image), target, reduction="none")
            for image in (x, x_adv)
        )
        assert (after > before).all()


def test_the_seed_decides_and_each_lambda_has_images_of_its_own() -> None:
    one, two, other = toy_pack(), toy_pack(), toy_pack(seed=1)
    assert np.array_equal(one.adversarial, two.adversarial)
    assert not np.array_equal(one.adversarial, other.adversarial)
    assert not np.array_equal(one.adversarial[0], one.adversarial[1])
    alone = toy_pack(lambdas=(1.0,))
    assert np.array_equal(alone.adversarial[0], one.adversarial[1])


@pytest.mark.parametrize("attack", ["pgd20", "apgd"])
def test_progress_grows_to_exactly_the_whole(attack) -> None:
    told: list[float] = []
    toy_pack(attack, num=3, progress=told.append)
    assert told == sorted(told) and told[0] > 0 and told[-1] == pytest.approx(1)
    assert len(told) == 2 * (1 if attack == "pgd20" else 3)


def test_a_stage_gets_only_what_is_left_and_none_when_nothing_is(monkeypatch) -> None:
    seen: list[tuple[str, int]] = []
    own = craft.run_stage

    def counted(stage, logits, x, y, **options):
        seen.append((stage, len(x)))
        assert options["on_grid"]
        return own(stage, logits, x, y, **options)

    monkeypatch.setattr(craft, "run_stage", counted)
    toy_pack("apgd", lambdas=(0.0,))
    (first, num), (second, after), *_ = seen
    assert (first, second, num) == ("pgd20", "apgd-ce", 16) and 0 < after < 16
    seen.clear()
    toy_pack("apgd", eps=0.6)
    assert seen == [("pgd20", 16)] * 2
    for attack in ATTACKS:
        seen.clear()
        pack = toy_pack(attack, lambdas=(0.0,))
        assert [stage for stage, _ in seen] == pack.settings["stages"], "what it says it did"


def test_packs_come_back_from_disk_with_equal_settings(packs, tmp_path: Path) -> None:
    """`export` compares them to tell whether a pack must be made again."""
    for attack, pack in packs.items():
        pack.save(tmp_path / f"{attack}.npz")
        assert AttackPack.load(tmp_path / f"{attack}.npz").settings == pack.settings
    assert len({repr(pack.settings) for pack in packs.values()}) == 3
    assert dataclasses.replace(packs["apgd"]).settings["targets"] == 4


def test_a_pack_fools_the_network_it_was_made_on(tiny_run: Path, digits: Dataset) -> None:
    folded = fold(load_checkpoint(tiny_run).network, 1.0)
    images, labels = digits.test.images[:30], digits.test.labels[:30]
    pack = craft_pack(
        folded,
        images,
        labels,
        np.arange(30),
        width=1.0,
        lambdas=(0.0, 1.0),
        num_classes=10,
        eps=32 / 255,
        checkpoint_sha256="0" * 64,
        seed=3,
    )
    for row, lam in enumerate(pack.lambdas):
        with torch.no_grad():
            logits = folded.at(torch.full((30,), lam))
            target = torch.from_numpy(labels)
            clean = logits(torch.from_numpy(images).float() / 255)
            attacked = logits(torch.from_numpy(pack.adversarial[row]).float() / 255)
            noise = 32 / 255 * torch.randn(30, 1, 8, 8).sign()
            noisy = logits((torch.from_numpy(images).float() / 255 + noise).clamp(0, 1))
        loss = torch.nn.functional.cross_entropy
        # White-box images do more than the same amount of noise.
        assert loss(attacked, target) > max(loss(clean, target), loss(noisy, target)) + 0.02
