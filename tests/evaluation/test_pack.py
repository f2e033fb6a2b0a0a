from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oat_edge.errors import InputError
from oat_edge.evaluation.pack import AttackPack, levels

ARRAYS = ("indices", "labels", "images", "adversarial")
any_fixture = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def same(a, b):
    facts = [field.name for field in dataclasses.fields(AttackPack) if field.name not in ARRAYS]
    return all(getattr(a, name) == getattr(b, name) for name in facts) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS
    )


def test_saved_packs_come_back_whole(make_pack, tmp_path):
    pack = make_pack(settings={"steps": 20, "alpha": 0.01})
    pack.save(tmp_path / "a.npz")
    assert same(AttackPack.load(tmp_path / "a.npz"), pack)


@any_fixture
@given(data=st.data())
def test_a_damaged_file_is_an_input_error_or_still_means_the_same(make_pack, tmp_path, data):
    pack, path = make_pack(indices=range(4)), tmp_path / "a.npz"
    pack.save(path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    path.write_bytes(content)
    try:
        assert same(AttackPack.load(path), pack)
    except InputError as error:
        assert "a.npz" in str(error) or "attack pack" in str(error)


@given(st.integers(0, 255))
def test_levels_forgives_the_rounding_of_fractions(level):
    assert levels(level / 255) == level
    assert level == 0 or levels((level - 0.01) / 255) == level - 1


def test_images_outside_the_ball_are_refused(make_pack):
    pack = make_pack()
    with pytest.raises(InputError, match="levels from its original"):
        dataclasses.replace(pack, eps=63 / 255)


@pytest.mark.parametrize(
    "change",
    [
        {"images": np.zeros((40, 1, 4, 4), dtype=np.float32)},
        {"labels": np.zeros(39, dtype=np.int64)},
        {"indices": np.zeros(39, dtype=np.int64)},
        {"lambdas": (0.0, 1.0)},
    ],
)
def test_arrays_that_do_not_fit_are_refused(make_pack, change):
    with pytest.raises(InputError, match="attack pack"):
        dataclasses.replace(make_pack(), **change)
