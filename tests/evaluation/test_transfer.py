from __future__ import annotations

import numpy as np
import pytest

from oat_edge.evaluation.outcome import Outcome, evaluate
from oat_edge.evaluation.transfer import largest_gain, transfer_grids
from oat_edge.operating_point import OperatingPoint

POINTS = [OperatingPoint(width, lam) for width in (0.5, 1.0) for lam in (0.0, 0.3, 1.0)]


@pytest.fixture
def packs(make_pack, pack_set):
    return pack_set(make_pack(), make_pack(width=1.0), make_pack("apgd", lambdas=(0.3,)))


def outcomes_at(points, packs, linear, **options):
    options = {"transfer": True, **options}
    return {point: evaluate(linear.at(point.lam), packs, point, **options) for point in points}


def test_every_cell_is_the_share_right_clean_and_under_what_was_crafted_there(packs, linear):
    outcomes = outcomes_at(POINTS, packs, linear)
    grids = {grid.attack: grid for grid in transfer_grids(outcomes)}
    assert set(grids) == {"pgd20", "apgd"}
    assert grids["pgd20"].sources == grids["pgd20"].targets == tuple(POINTS)
    assert grids["apgd"].sources == (OperatingPoint(0.5, 0.3),)
    for attack, grid in grids.items():
        assert grid.num_samples == len(packs)
        for target, shares in zip(grid.targets, grid.robust_accuracy, strict=True):
            outcome = outcomes[target]
            for source, share in zip(grid.sources, shares, strict=True):
                own = source == target
                right = outcome.attacked[attack] if own else outcome.transferred[attack, source]
                assert share == (outcome.clean & right).mean()
                assert outcome.accuracy().robust_accuracy["worst"] <= share


def test_targets_may_be_fewer_than_sources_and_elsewhere(packs, linear):
    target = OperatingPoint(1.0, 0.2)  # no pack holds it
    _, grid = transfer_grids(outcomes_at([target], packs, linear))
    assert grid.targets == (target,) and grid.sources == tuple(POINTS)
    assert None not in grid.robust_accuracy[0]


def test_a_pair_that_was_not_measured_is_none(packs, linear):
    here, there = POINTS[0], POINTS[1]
    outcomes = outcomes_at([here], packs, linear) | outcomes_at(
        [there], packs, linear, transfer=False
    )
    _, grid = transfer_grids(outcomes)
    known = [share is not None for share in grid.robust_accuracy[1]]
    assert known == [source == there for source in grid.sources]


@pytest.mark.parametrize("name", ["pgd20 and apgd", "pgd20"])
def test_the_diagonal_is_of_the_very_images_that_are_replayed_elsewhere(name):
    """Not of an attack that bears the name, which may have been made on others."""
    rng = np.random.default_rng(0)
    clean, own, attack, *other = rng.random((5, 20)) < 0.7
    here, there = POINTS[:2]
    outcomes = {
        point: Outcome(
            clean=clean,
            attacked={"pgd20": attack},
            crafted={name: own},
            transferred={(name, elsewhere): right},
        )
        for point, elsewhere, right in ((here, there, other[0]), (there, here, other[1]))
    }
    (grid,) = transfer_grids(outcomes)
    assert grid.attack == name and grid.sources == grid.targets == (here, there)
    expected = ((own, other[0]), (other[1], own))
    assert grid.robust_accuracy == tuple(
        tuple((clean & right).mean() for right in row) for row in expected
    )
    assert (clean & own).mean() != (clean & attack).mean()


def test_nothing_transferred_no_grid(make_pack, pack_set, packs, linear):
    assert transfer_grids(outcomes_at(POINTS, packs, linear, transfer=False)) == ()
    alone = pack_set(make_pack(lambdas=(0.3,)))
    assert transfer_grids(outcomes_at([POINTS[1]], alone, linear)) == ()
    assert transfer_grids({}) == () and largest_gain(()) is None


def test_largest_gain_is_over_all_pairs_whose_target_was_attacked_at_home(packs, linear):
    grids = transfer_grids(outcomes_at(POINTS, packs, linear))
    gain, grid, target, source = largest_gain(grids)
    assert source != target
    every = []
    for one in grids:
        for i, row in enumerate(one.targets):
            for j, column in enumerate(one.sources):
                if row in one.sources and row != column:
                    own = one.robust_accuracy[i][one.sources.index(row)]
                    every.append(own - one.robust_accuracy[i][j])
    assert gain == max(every)
    shares = dict(zip(grid.sources, grid.robust_accuracy[grid.targets.index(target)], strict=True))
    assert gain == shares[target] - shares[source]


def test_a_target_without_its_own_attack_has_no_gain(packs, linear):
    assert (
        largest_gain(transfer_grids(outcomes_at([OperatingPoint(1.0, 0.2)], packs, linear))) is None
    )
