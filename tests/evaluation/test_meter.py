from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from oat_edge.evaluation.meter import Meter, silent

PARTS = st.lists(
    st.tuples(st.floats(0, 100), st.integers(1, 30), st.integers(0, 60)), max_size=8
)  # cost, passes at most, passes made


def watched(parts, total):
    told = []
    meter = Meter(lambda *call: told.append(call), total)
    function = meter.counted(lambda x: x + 1)
    for index, (cost, passes, made) in enumerate(parts):
        meter.begin(f"part {index}", cost, passes)
        for value in range(made):
            assert function(value) == value + 1
        meter.end()
    return told


@given(parts=PARTS)
def test_progress_never_goes_back_nor_past_the_total_and_ends_there(parts):
    total = sum(cost for cost, _, _ in parts)
    told = watched(parts, total)
    done = [one for one, _, _ in told]
    assert all(later >= earlier for earlier, later in pairwise(done))
    assert all(0 <= one <= total and given == total for one, given, _ in told)
    if parts:
        assert abs(done[-1] - total) <= 1e-9 * total
        assert [label for _, _, label in told] == sorted(label for _, _, label in told)


@given(parts=PARTS, counted=st.floats(0, 1))
def test_more_work_than_was_counted_does_not_overflow(parts, counted):
    """A cell that was there when the total was made may be gone."""
    total = counted * sum(cost for cost, _, _ in parts)
    assert all(0 <= done <= total for done, _, _ in watched(parts, total))


def test_each_pass_moves_on_by_its_share():
    told = watched([(8.0, 4, 3), (2.0, 1, 1)], 10.0)
    assert [done for done, _, _ in told] == [0, 2, 4, 6, 8, 8, 10, 10]


def test_passes_outside_a_part_count_for_nothing():
    told = []
    meter = Meter(lambda *call: told.append(call), 5.0)
    meter.counted(abs)(-1)
    assert told == [(0.0, 5.0, "")]
    silent(*told[0])
