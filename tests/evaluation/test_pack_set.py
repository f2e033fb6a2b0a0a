from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oat_edge.errors import InputError
from oat_edge.evaluation.pack_set import RESERVED, PackSet
from oat_edge.operating_point import OperatingPoint

CHECKPOINT = "c" * 64


def test_sources_are_every_attack_at_every_point_it_was_crafted_for(make_pack, pack_set):
    packs = pack_set(
        make_pack("pgd20"), make_pack("apgd", lambdas=(1.0,)), make_pack(width=1.0, lambdas=(0.3,))
    )
    assert set(packs.sources) == {
        ("pgd20", OperatingPoint(0.5, 0.0)),
        ("pgd20", OperatingPoint(0.5, 0.3)),
        ("pgd20", OperatingPoint(0.5, 1.0)),
        ("apgd", OperatingPoint(0.5, 1.0)),
        ("pgd20", OperatingPoint(1.0, 0.3)),
    }
    assert [str(point) for point in packs.points] == ["0.5@0", "0.5@0.3", "0.5@1", "1@0.3"]
    assert packs.lambdas(0.5) == (0.0, 0.3, 1.0) and packs.lambdas(0.75) == ()


choices = st.lists(
    st.permutations(range(12)).flatmap(
        lambda order: st.integers(1, 12).map(lambda num: order[:num])
    ),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(choices)
def test_all_packs_are_cut_to_their_common_images_in_one_order(make_pack, choices):
    """Whatever the packs' own order: each adversarial image stays beside its own clean one."""
    made = [make_pack(f"attack{i}", indices=indices) for i, indices in enumerate(choices)]
    common = sorted(set.intersection(*map(set, choices)))
    if not common:
        with pytest.raises(InputError, match="no image in common"):
            PackSet(made, checkpoint_sha256=CHECKPOINT)
        return
    packs = PackSet(made, checkpoint_sha256=CHECKPOINT)
    assert packs.indices.tolist() == common and len(packs) == len(common)
    alone = make_pack(indices=common)
    assert np.array_equal(packs.images, alone.images)
    assert np.array_equal(packs.labels, alone.labels)
    for i in range(len(made)):
        expected = make_pack(f"attack{i}", indices=common).adversarial
        for place, lam in enumerate((0.0, 0.3, 1.0)):
            crafted = packs.adversarial(f"attack{i}", OperatingPoint(0.5, lam))
            assert np.array_equal(crafted, expected[place])


@pytest.mark.parametrize("point", [(0.5, 0.2), (1.0, 0.3)])
def test_what_no_pack_holds_is_a_key_error(make_pack, pack_set, point):
    with pytest.raises(KeyError):
        pack_set(make_pack()).adversarial("pgd20", OperatingPoint(*point))


def test_no_packs_no_set():
    with pytest.raises(InputError, match="oat-edge export"):
        PackSet([], checkpoint_sha256=CHECKPOINT)


@pytest.mark.parametrize("name", RESERVED)
def test_names_that_reports_use_are_no_attacks(make_pack, pack_set, name):
    with pytest.raises(InputError, match=name):
        pack_set(make_pack(name))


def test_packs_of_something_else_are_refused(make_pack, pack_set):
    with pytest.raises(InputError, match="checkpoint dddd"):
        pack_set(make_pack(checkpoint_sha256="d" * 64))
    with pytest.raises(InputError, match="ε 64/255, expected 8/255"):
        pack_set(make_pack(), eps=8 / 255)
    assert pack_set(make_pack(), eps=64 / 255).eps == pack_set(make_pack()).eps == 64 / 255


def test_packs_that_do_not_fit_together_are_refused(make_pack, pack_set):
    pgd, apgd = make_pack("pgd20"), make_pack("apgd")
    with pytest.raises(InputError, match="two packs"):
        pack_set(pgd, make_pack("pgd20", lambdas=(1.0,)))
    assert len(pack_set(pgd, make_pack("pgd20", width=1.0)).sources) == 6
    with pytest.raises(InputError, match="ε 65/255, expected 64/255"):
        pack_set(pgd, dataclasses.replace(apgd, eps=65 / 255))
    relabelled = dataclasses.replace(apgd, labels=(apgd.labels + 1) % 3)
    with pytest.raises(InputError, match="hold different ones"):
        pack_set(pgd, relabelled)
    other = np.clip(apgd.images.astype(int) + 1, 0, 255).astype(np.uint8)
    with pytest.raises(InputError, match="hold different ones"):
        pack_set(pgd, dataclasses.replace(apgd, images=other, adversarial=np.stack([other] * 3)))


def test_packs_of_unlike_size_are_told_of_and_equal_ones_not(make_pack, pack_set):
    large, small = make_pack("pgd20", indices=range(40)), make_pack("apgd", indices=range(10))
    (warning,) = pack_set(large, small).warnings
    assert "hold 10 and 40 images" in warning and "of the 10 that every pack holds" in warning
    assert pack_set(small, make_pack("pgd20", indices=range(10))).warnings == ()
    # A smaller choice of images was asked for: nothing to tell.
    assert pack_set(large, make_pack("apgd", indices=range(40))).cut(5, seed=0).warnings == ()
