from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.calib.width_error import Judge, Offset, PointError, WidthError, _offset
from oat_edge.data import Dataset
from tests.conftest import make_network, tiny_config

shares = st.floats(0, 1)
images = st.integers(2, 40)


@given(seed=st.integers(0, 2**32 - 1), number=images, share=shares)
def test_an_offset_is_the_distance_to_the_line(seed: int, number: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    new, below, above = (rng.random(number) < 0.7 for _ in range(3))
    found = _offset([new, below, above], share, None)
    assert (found.accuracy, found.below, found.above) == (new.mean(), below.mean(), above.mean())
    assert found.line == pytest.approx(found.below + share * (found.above - found.below))
    assert found.offset == pytest.approx(found.accuracy - found.line, abs=1e-12)
    assert 0 <= found.standard_error <= 1.5 / np.sqrt(number - 1)
    # The comparison is paired: against itself there is nothing to be uncertain of.
    same = _offset([new, new, new], share, None)
    assert abs(same.offset) < 1e-12 and same.standard_error < 1e-12


def test_the_shortfall_is_the_lowest_of_both_accuracies_at_all_knots() -> None:
    def offset(value: float) -> Offset:
        return Offset(
            accuracy=0.5 + value, below=0.5, above=0.5, line=0.5, offset=value, standard_error=0.0
        )

    def error(*pairs: tuple[float, float]) -> WidthError:
        points = [
            PointError(lam=i / 10, standard=offset(sa), robust=offset(ra))
            for i, (sa, ra) in enumerate(pairs)
        ]
        return WidthError(
            width=0.6, neighbours=(0.5, 0.75), points=tuple(points), num_samples=9, num_attacked=9
        )

    worst = error((0.02, -0.01), (-0.03, 0.1))
    kind, point = worst.worst()
    assert (kind, point.lam, worst.shortfall) == ("standard", 0.1, 0.03)
    assert error((0.02, 0.01)).shortfall == 0.0  # above the line is no error


def test_judging_covers_every_knot_and_comes_out_the_same_again(digits: Dataset) -> None:
    network = make_network(lambdas=(0.0, 1.0))
    judge = Judge(digits.val, tiny_config(), num_attacked=20, seed=3)
    told: list[float] = []
    found = judge.judge(network, 0.75, (0.5, 1.0), before={0.0: 0.25}, say=told.append)
    assert told[-1] == 1.0 and told == sorted(told)
    assert [point.lam for point in found.points] == [0.0, 1.0]
    assert found.num_attacked == 20 and found.num_samples == len(digits.val)
    assert found.points[0].standard.before == 0.25 and found.points[1].standard.before is None
    again = Judge(digits.val, tiny_config(), num_attacked=20, seed=3)
    assert again.judge(copy.deepcopy(network), 0.75, (0.5, 1.0), before={0.0: 0.25}) == found
    assert again.standard(network, 0.75)[0.0] == found.points[0].standard.accuracy
