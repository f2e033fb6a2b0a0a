from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from oat_edge.attacks import point as point_module
from oat_edge.attacks.plan import (
    CHECKS,
    COSTS,
    PASSES,
    PGD,
    SQUARE,
    Images,
    Plan,
    cell_cost,
    cell_name,
)
from oat_edge.attacks.point import PointAttack, PointResult
from oat_edge.attacks.stages import ATTACKS, StageResult, run_stage, still_right
from oat_edge.evaluation.cells import CellStore
from oat_edge.evaluation.checks import TOO_WEAK, Check
from oat_edge.evaluation.meter import Meter, silent
from oat_edge.operating_point import OperatingPoint
from tests.toy import EPS, Toy, toy_images

POINT = OperatingPoint(1.0, 0.0)


def plan(*attacks: str, **changes) -> Plan:
    settings = {"eps": EPS, "seed": 0, "num_classes": 5, "num_queries": 60, "batch_size": 250}
    return Plan(attacks=attacks, **{**settings, **changes})


# Enough for the checks that compare attacks.
MANY = 60


def toy_data(num: int = 24) -> Images:
    images, labels = toy_images(num)
    return Images(images=images, labels=labels, indices=np.arange(num))


def run(folder: Path, what: Plan, *, folded=None, data=None, at=POINT) -> PointResult:
    store, meter = CellStore(folder, {"of": "test"}), Meter(silent, 1.0)
    return PointAttack(folded or Toy(), at, data or toy_data(), what, store, meter).run()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> PointResult:
    """Everything there is."""
    folder = tmp_path_factory.mktemp("whole")
    return run(folder, plan("apgd", "autoattack", "square"), data=toy_data(MANY))


def test_parts_come_in_an_order_in_which_each_finds_what_it_builds_on():
    assert plan("square").parts == (PGD, SQUARE, CHECKS)
    assert plan("apgd").parts == (PGD, "apgd-ce", "apgd-t", CHECKS)
    everything = (PGD, *ATTACKS["autoattack"], SQUARE, CHECKS)
    assert plan("pgd20", "apgd", "autoattack", "square").parts == everything
    assert plan("square", "autoattack").parts == everything
    assert set(COSTS) >= set(everything) and set(PASSES) | {SQUARE} == set(everything)
    strongest = [plan(*a).strongest for a in (["square"], ["apgd", "pgd20"], ["autoattack"])]
    assert strongest == ["pgd20", "apgd", "autoattack"]


def test_every_attack_is_reported_and_the_longer_one_is_never_the_weaker(whole):
    robust = whole.outcome.robust
    assert list(robust) == ["pgd20", "apgd", "autoattack", "square", "worst"]
    assert not (robust["autoattack"] & ~robust["apgd"]).any()
    for right in robust.values():
        assert not (robust["worst"] & ~right).any() and not (right & ~whole.outcome.clean).any()
    assert robust["worst"].any() and not whole.outcome.clean.all()
    assert set(whole.seconds) == set(plan("apgd", "autoattack", "square").parts)
    assert all(seconds >= 0 for seconds in whole.seconds.values())


def test_autoattack_runs_as_its_authors_have_it_whatever_pgd_has_fooled(whole):
    """Its stages attack what they left themselves: PGD-20 must not thin them out."""
    data = toy_data(MANY)
    x, y = torch.from_numpy(data.images).float() / 255, torch.from_numpy(data.labels)
    logits = Toy().at(torch.zeros(1))
    right = still_right(logits, x, y)
    for stage in ATTACKS["apgd"]:
        left = right.nonzero()[:, 0]
        result = run_stage(stage, logits, x[left], y[left], eps=EPS, seed=0, num_classes=5)
        right[left] = result.right
    assert np.array_equal(whole.outcome.attacked["apgd"], right.numpy())


def test_what_is_handed_to_the_transfer_grid_fools_wherever_an_attack_did(whole):
    data = toy_data(MANY)
    logits = Toy().at(torch.zeros(1))
    y = torch.from_numpy(data.labels)
    right = still_right(logits, whole.crafted, y).numpy()
    assert not (right & ~whole.outcome.attacked["autoattack"]).any()
    assert not (right & ~whole.outcome.attacked["pgd20"]).any()
    # And nowhere else: this is what the diagonal of the grid says.
    clean = whole.outcome.clean
    assert whole.outcome.crafted.keys() == {"pgd20 and autoattack"}
    assert np.array_equal(clean & right, clean & whole.outcome.crafted["pgd20 and autoattack"])
    x = torch.from_numpy(data.images).float() / 255
    assert (whole.crafted - x).abs().max() <= EPS + 1e-6
    # Those that nothing fools are PGD's, not the clean image.
    assert (whole.crafted != x).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("weak", ["pgd20", "apgd", None])
def test_the_images_of_both_are_replayed_whichever_is_the_weaker(weak, tmp_path, monkeypatch):
    """Made to fool nothing, one leaves the other's images."""
    own = run_stage

    def weakened(stage, logits, x, y, **options):
        if weak is not None and stage in ATTACKS[weak]:
            return StageResult(x.clone(), torch.ones(len(x), dtype=torch.bool))
        return own(stage, logits, x, y, **options)

    monkeypatch.setattr(point_module, "run_stage", weakened)
    result = run(tmp_path, plan("apgd"))
    outcome, data = result.outcome, toy_data()
    assert outcome.crafted.keys() == {"pgd20 and apgd"}
    crafted = outcome.clean & outcome.crafted["pgd20 and apgd"]
    labels = torch.from_numpy(data.labels)
    replayed = still_right(Toy().at(torch.zeros(1)), result.crafted, labels).numpy()
    assert np.array_equal(crafted, outcome.clean & replayed)
    robust = outcome.robust
    assert np.array_equal(crafted, robust["pgd20"] & robust["apgd"])
    assert crafted.sum() < outcome.clean.sum()
    for attack in ("pgd20", "apgd"):
        assert np.array_equal(robust[attack], outcome.clean) == (attack == weak)


def test_of_pgd_alone_the_images_are_named_and_right_as_it_is(tmp_path):
    outcome = run(tmp_path, plan("pgd20", "square")).outcome
    assert outcome.crafted.keys() == {"pgd20"}
    assert np.array_equal(outcome.crafted["pgd20"], outcome.attacked["pgd20"])


def square_of(result: PointResult) -> Check:
    (check,) = [check for check in result.checks if check.name == "square"]
    return check


def stronger_square(monkeypatch, share):
    """Square that leaves every n-th image."""

    def strong(infer, images, labels, clean, **options):
        return clean & (np.arange(len(clean)) % share == 0)

    monkeypatch.setattr(point_module, "right_under_square", strong)


def test_square_stronger_than_pgd_alone_warns_and_than_apgd_too_is_suspect(tmp_path, monkeypatch):
    stronger_square(monkeypatch, 20)
    data = toy_data(MANY)
    alone = run(tmp_path, plan("pgd20", "square"), data=data)
    check = square_of(alone)
    assert check.flagged is None and check.evidence.endswith(TOO_WEAK)
    assert "under PGD-20;" in check.evidence and not flags(alone)
    both = run(tmp_path, plan("pgd20", "apgd", "square"), data=data)
    check = square_of(both)
    assert check.flagged is True and "under all white-box attacks;" in check.evidence


@pytest.mark.parametrize(("more", "flagged"), [(0, False), (2, False), (3, True)])
def test_of_autoattacks_own_square_what_it_adds_is_judged(more, flagged, tmp_path, monkeypatch):
    """Two images, or 2 %: without Square of our own there is nothing to compare."""
    own = run_stage

    def changed(stage, logits, x, y, **options):
        if stage != "square-aa":
            return own(stage, logits, x, y, **options)
        return StageResult(x.clone(), torch.arange(len(x)) >= more)

    monkeypatch.setattr(point_module, "run_stage", changed)
    result = run(tmp_path, plan("autoattack"), data=toy_data(MANY))
    check = square_of(result)
    left = int(result.outcome.attacked["autoattack"].sum()) + more
    assert check.flagged is flagged
    assert f"fooled {more} of the {left} images" in check.evidence
    assert check.evidence.endswith(f"of {MANY}")


def test_logits_that_are_no_numbers_are_flagged(tmp_path):
    broken = Changed(Toy(), after=lambda z: torch.where(z[:, :1] > z[:, :1].median(), torch.inf, z))
    result = run(tmp_path, plan("pgd20", num_queries=5), folded=broken)
    (check,) = [check for check in result.checks if check.name == "randomised output"]
    assert check.flagged is True and check.evidence == "logits of 12 of 24 images are not finite"


def test_an_honest_network_is_flagged_by_nothing(whole):
    made = [check for check in whole.checks if check.flagged is not None]
    assert [check.name for check in made if check.flagged] == [] and whole.warnings == ()
    assert [check.name for check in whole.checks] == [
        "randomised output", "zero gradient", "single step", "restarts", "growing ε",
        "stronger attack", "square",
    ]  # fmt: skip
    assert len(made) == len(whole.checks)


def test_square_not_run_is_said_not_passed(tmp_path):
    result = run(tmp_path, plan("pgd20"))
    (check,) = [check for check in result.checks if check.name == "square"]
    assert check.flagged is None and "add square to --attack" in check.evidence
    assert "stronger attack" not in {check.name for check in result.checks}


def test_when_everything_is_fooled_early_the_rest_has_nothing_to_do(tmp_path, monkeypatch):
    seen = []
    own = run_stage

    def counted(stage, logits, x, *rest, **options):
        seen.append((stage, len(x)))
        return own(stage, logits, x, *rest, **options)

    monkeypatch.setattr(point_module, "run_stage", counted)
    result = run(tmp_path, plan("autoattack", "square", eps=0.6))
    assert not result.outcome.robust["worst"].any()
    assert [stage for stage, _ in seen] == ["pgd20", "apgd-ce"]
    again = run(tmp_path, plan("autoattack", "square", eps=0.6))
    assert len(seen) == 2 and np.array_equal(again.crafted, result.crafted)


def test_what_is_loaded_from_cells_is_what_was_computed(tmp_path, monkeypatch):
    """Piece by piece, as three commands would, and all at once."""
    at_once = run(tmp_path / "once", plan("apgd", "square"))
    run(tmp_path / "parts", plan("pgd20"))
    run(tmp_path / "parts", plan("apgd"))
    monkeypatch.setattr(point_module, "run_stage", None)
    in_parts = run(tmp_path / "parts", plan("apgd", "square"))
    for name, right in at_once.outcome.robust.items():
        assert np.array_equal(right, in_parts.outcome.robust[name]), name
    assert torch.equal(at_once.crafted, in_parts.crafted)
    assert at_once.checks == in_parts.checks


def test_warnings_of_the_package_survive_the_cells(tmp_path):
    probabilities = Changed(Toy(), after=lambda logits: logits.softmax(dim=1))
    first, second = (run(tmp_path, plan("apgd"), folded=probabilities) for _ in range(2))
    assert first.warnings == second.warnings
    assert any("probability distribution" in text for text in first.warnings)
    assert len(set(first.warnings)) == len(first.warnings)


def test_no_two_parts_of_any_two_points_share_a_cell():
    points = [
        OperatingPoint(width, lam)
        for width in (0.5, 0.5000001, 1.0)
        for lam in (0.0, 0.1, 0.1000001, 1 / 3, 0.3333333, 1.0)
    ]
    plans = [plan("autoattack", "square"), plan("autoattack", "square", num_queries=61)]
    names = {cell_name(one, part, p) for one in points for p in plans for part in p.parts}
    assert len(names) == len(points) * (len(plans[0].parts) + 1)
    assert all(cell_cost(one, PGD) > 0 for one in points)
    assert not any("/" in name or "\\" in name for name in names)


class Changed:
    """A folded network with something done to its images or its logits."""

    def __init__(self, folded, *, before=lambda x: x, after=lambda logits: logits):
        self.table, self.folded, self.before, self.after = folded.table, folded, before, after

    def at(self, lam):
        logits = self.folded.at(lam)
        return lambda x: self.after(logits(self.before(x)))


def flags(result: PointResult) -> set[str]:
    return {check.name for check in result.checks if check.flagged}
