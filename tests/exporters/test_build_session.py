from __future__ import annotations

import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.exporters.build_session import Phases, one_line, open_log

TREES = st.recursive(
    st.integers(0, 4), lambda inner: st.tuples(st.integers(1, 4), st.lists(inner)), max_leaves=12
)


def walk(phases, tree, name="root", parent=None):
    """As a builder does: a phase's children run inside its steps; not all steps need be told."""
    num_steps, children = (tree, []) if isinstance(tree, int) else tree
    phases.start(name, parent, num_steps)
    for place, child in enumerate(children):
        walk(phases, child, f"{name}.{place}", name)
        phases.step(name)
    for _ in range(num_steps - len(children)):
        phases.step(name)
    phases.finish(name)


@given(st.lists(TREES, min_size=1, max_size=3))
def test_the_share_grows_within_bounds_whatever_the_phases(trees):
    told: list[float] = []
    phases = Phases(told.append)
    for place, tree in enumerate(trees):
        walk(phases, tree, f"root{place}")
    assert all(0 < share < 1 for share in told)
    assert all(a < b for a, b in pairwise(told))


def test_steps_of_inner_phases_move_it():
    told: list[float] = []
    phases = Phases(told.append)
    phases.start("all", None, 2)
    phases.start("part", "all", 4)
    phases.step("part")
    assert told == [pytest.approx(1 / 8)]
    for _ in range(3):
        phases.step("part")
    phases.finish("part")
    assert told[-1] == pytest.approx(1 / 2)
    phases.step("all")
    assert told[-1] == pytest.approx(1 / 2)


def test_phases_that_nobody_began_are_ignored():
    told: list[float] = []
    phases = Phases(told.append)
    phases.step("unknown")
    phases.finish("unknown")
    phases.start("own parent", "own parent", 3)
    phases.step("own parent")
    assert told == []


def test_it_grows_with_phases_in_several_threads():
    told: list[float] = []
    phases = Phases(told.append)
    phases.start("all", None, 4)

    def work(name):
        phases.start(name, "all", 500)
        for _ in range(500):
            phases.step(name)

    threads = [threading.Thread(target=work, args=(f"part{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(a < b for a, b in pairwise(told)) and told[-1] > 0.2


def test_lines_are_one_and_short():
    assert one_line("a\n  b\tc\r\n") == "a b c"
    assert len(one_line("x " * 5000)) < 400


def test_a_log_is_there_at_once(tmp_path):
    path = tmp_path / "new" / "build.log"
    with open_log(path) as file:
        file.write("first \udcff λ\n")
        assert "first" in path.read_text(encoding="utf-8")
    with open_log(None) as file:
        assert file is None
