from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oat_edge.errors import InputError
from oat_edge.evaluation.cells import CellStore

KEY = {"checkpoint": "abc", "eps": 8 / 255, "indices": [1, 2]}
ARRAYS = {"right": np.array([True, False]), "x_adv": np.arange(6, dtype=np.float32).reshape(2, 3)}
FACTS = {"seconds": 1.25, "warnings": ["ε is small"]}


@pytest.fixture
def store(tmp_path):
    return CellStore(tmp_path / "eval", KEY)


def is_what_was_saved(cell):
    arrays, facts = cell
    same = {name: np.array_equal(arrays[name], array) for name, array in ARRAYS.items()}
    return set(arrays) == set(ARRAYS) and all(same.values()) and facts == FACTS


def test_a_cell_comes_back_whole_with_its_dtypes(store):
    assert store.load("a") is None
    store.save("a", ARRAYS, FACTS)
    assert is_what_was_saved(store.load("a"))
    assert [a.dtype for a in store.load("a")[0].values()] == [a.dtype for a in ARRAYS.values()]
    assert store.load("b") is None


def test_a_cell_without_arrays_is_a_cell(store):
    store.save("checks", {}, {"checks": []})
    assert store.load("checks") == ({}, {"checks": []})


def test_a_later_cell_replaces_an_earlier_one(store):
    store.save("a", {}, {"n": 1})
    store.save("a", ARRAYS, FACTS)
    assert is_what_was_saved(store.load("a"))
    assert {p.name for p in store.folder.iterdir()} == {"a.npz", "key.json"}


@pytest.mark.parametrize(
    "change",
    [{"checkpoint": "abd"}, {"eps": 8.0000001 / 255}, {"indices": [2, 1]}, {"more": None}],
)
def test_another_key_is_another_folder(store, change, tmp_path):
    store.save("a", ARRAYS, FACTS)
    other = CellStore(tmp_path / "eval", {**KEY, **change})
    assert other.load("a") is None
    other.clear()
    assert is_what_was_saved(store.load("a"))


def test_an_equal_key_in_another_order_is_the_same_folder_and_stands_beside_the_cells(
    store, tmp_path
):
    store.save("a", ARRAYS, FACTS)
    again = CellStore(tmp_path / "eval", dict(reversed(KEY.items())))
    assert is_what_was_saved(again.load("a"))
    assert json.loads((store.folder / "key.json").read_text()) == KEY


def test_nothing_is_written_before_the_first_cell(store, tmp_path):
    store.load("a")
    store.clear()
    assert not (tmp_path / "eval").exists()


def test_clear_forgets_the_cells_and_what_a_killed_writer_left(store):
    store.save("a", ARRAYS, FACTS)
    (store.folder / ".writing-a-x1y2.npz").write_bytes(b"half")
    store.clear()
    assert store.load("a") is None
    assert {p.name for p in store.folder.iterdir()} == {"key.json"}


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_cell_is_no_cell(place, flip, store):
    """Any byte changed, or the file cut there: recomputed, never wrong and never a traceback."""
    store.save("a", ARRAYS, FACTS)
    path = store.folder / "a.npz"
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    if flip:
        content[at] ^= flip
    else:
        del content[at:]
    path.write_bytes(content)
    cell = store.load("a")
    assert cell is None or is_what_was_saved(cell)


def test_a_cell_is_never_unpickled(store):
    store.save("a", {}, {})
    np.savez(store.folder / "a.npz", meta=np.array([{"a": 1}], dtype=object))
    assert store.load("a") is None


def test_where_nothing_can_be_written_one_line_says_so(tmp_path):
    (tmp_path / "eval").write_text("a file")
    with pytest.raises(InputError, match=r"cannot write .*eval"):
        CellStore(tmp_path / "eval", KEY).save("a", ARRAYS, FACTS)


WRITER = """
import sys, numpy as np
from pathlib import Path
from oat_edge.evaluation.cells import CellStore
store = CellStore(Path(sys.argv[1]), {"k": 1})
while True:
    store.save("a", {"x": np.random.default_rng(0).random(200_000)}, {"whole": True})
    print("saved", flush=True)
"""


def test_a_writer_that_is_killed_leaves_the_old_cell_or_the_new_one(tmp_path, child_environment):
    """And a reader beside it never sees a part."""
    store = CellStore(tmp_path, {"k": 1})
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path], env=child_environment, stdout=subprocess.PIPE
    )
    try:
        process.stdout.readline()
        for _ in range(40):
            arrays, facts = store.load("a")
            assert len(arrays["x"]) == 200_000 and facts == {"whole": True}
    finally:
        process.kill()
        process.communicate()
    arrays, _ = store.load("a")
    assert len(arrays["x"]) == 200_000
