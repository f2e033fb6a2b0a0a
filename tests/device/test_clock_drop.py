"""A drop is found and scatter is not one, over many simulated cells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from oat_edge.device.clock_drop import READINGS, Clock, find_drop, gather

CELLS = 3000
# (parts, readings of each): --quick, a bench of ten parts, and one of long parts.
CELL_SHAPES = ((4, 8), (4, 10), (5, 10), (10, 5), (10, 40), (20, 5))


def share_found(cells: npt.NDArray[np.float64]) -> float:
    """cells: (cell, part, reading) in MHz."""
    found = 0
    for cell in cells:
        parts = [Clock(*np.quantile(part, (0, 0.5, 1)), num=len(part)) for part in cell]
        gathered = gather(parts)
        found += len(gathered) > 1 and find_drop(gathered) is not None
    return found / len(cells)


def scattered(shape: tuple[int, int], scatter: float) -> npt.NDArray[np.float64]:
    return 3000 * (1 + scatter * np.random.default_rng(7).standard_normal((CELLS, *shape)))


@pytest.mark.parametrize("shape", CELL_SHAPES)
@pytest.mark.parametrize("scatter", [0.01, 0.03])
def test_scatter_is_no_drop(shape: tuple[int, int], scatter: float) -> None:
    assert share_found(scattered(shape, scatter)) < 0.01


@pytest.mark.parametrize("shape", CELL_SHAPES)
@pytest.mark.parametrize("together", [True, False])
def test_a_drop_in_a_third_of_the_parts_is_found(shape: tuple[int, int], together: bool) -> None:
    cells, parts = scattered(shape, 0.03), np.arange(shape[0])
    rng = np.random.default_rng(8)
    for cell in cells:
        where = parts if together else rng.permutation(parts)
        cell[where[-round(shape[0] / 3) :]] *= 0.9
    assert share_found(cells) > 0.99


def test_one_part_of_ten_is_found_where_clocks_are_steady() -> None:
    steady, low = Clock(3000, 3000, 3000, 20), Clock(2800, 2800, 2800, 20)
    assert find_drop([steady] * 9 + [low]) == (3000, 2800)
    assert find_drop([low] + [steady] * 9) == (2800, 3000)
    assert find_drop([steady] * 10) is None


def test_single_readings_of_many_parts_are_put_together() -> None:
    parts = [Clock(mhz, mhz, mhz, 1) for mhz in (3000, 3100, 2900, 3000, 3050, 2000, 2000)]
    assert gather(parts) == [Clock(2000, 3000, 3100, 7)]
    assert gather(parts[: READINGS - 1]) == []
    enough = [Clock(1, 2, 3, READINGS), Clock(4, 5, 6, READINGS)]
    assert gather(enough) == enough
