from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oat_edge.bench.room import Room
from oat_edge.device.system import System

TOTAL_MB = 8000


@pytest.fixture
def board(tmp_path):
    """A board with 8 GB, whose free memory a test sets."""
    (tmp_path / "proc").mkdir()

    def available(mb: float) -> System:
        free = int(max(mb, 0) * 1024)
        text = f"MemTotal: {TOTAL_MB * 1024} kB\nMemFree: 1 kB\nMemAvailable: {free} kB\n"
        (tmp_path / "proc/meminfo").write_text(text)
        return System(tmp_path)

    return available


def num_side_by_side(board, free_mb, each_mb, most=100):
    """How many processes of one size are opened."""
    room = Room(board(free_mb))
    for num in range(most):
        if not room.for_another():
            return num
        room.opened()
        board(free_mb - (num + 1) * each_mb)
    return most


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(free_mb=st.floats(1000, 7500), each_mb=st.floats(20, 3000))
def test_grown_to_twice_their_size_all_fit_beside_the_reserve(board, free_mb, each_mb):
    num = num_side_by_side(board, free_mb, each_mb)
    assert num >= 1
    if num > 1:
        assert free_mb - 2 * num * each_mb >= 0.1 * TOTAL_MB - 1
    if 1 < num < 100:  # and one more would not
        assert free_mb - 2 * (num + 1) * each_mb <= 0.1 * TOTAL_MB + 1


def test_the_first_is_opened_however_little_there_is(board):
    assert num_side_by_side(board, 100, 50) == 1


def test_where_memory_cannot_be_read_there_is_room(tmp_path):
    room = Room(System(tmp_path))
    room.opened()
    assert room.for_another()
