from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.bench import schema
from oat_edge.bench.environment import Environment, collect
from oat_edge.device.system import System

TREES = Path(__file__).with_name("trees")


@pytest.fixture(scope="module", params=["orin-nano", "agx-thor"])
def workshop(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("workshop") / "tree"
    shutil.copytree(TREES / request.param, root, symlinks=True)
    # One core is enough: they are read alike.
    for core in root.glob("sys/devices/system/cpu/cpu[1-9]*"):
        shutil.rmtree(core)
    return System(root), sorted(path for path in root.rglob("*") if path.is_file())


NOWHERE = Path("/nowhere")  # no folder, no question about a git commit


DAMAGE = (b"", b"nan", b"inf", b"-1", b"1e999", b"9" * 5000, b"{}", b"[" * 5000, b"\0\xff\n" * 9)


def damage(system, path, content):
    """Look at the machine with one file damaged: what is found, as a report and back."""
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        found = collect(system=system, folder=NOWHERE)
    finally:
        path.write_bytes(whole)
    report = json.dumps(schema.dump(found), allow_nan=False)
    assert schema.load(Environment, json.loads(report), "environment") == found
    assert found.jetson is not None  # no single file decides it
    return found


@pytest.mark.parametrize("content", DAMAGE, ids=lambda content: repr(content[:8]))
def test_no_damaged_file_raises_or_gives_what_a_report_cannot_hold(content, workshop):
    system, files = workshop
    assert len(files) > 50
    for path in files:
        damage(system, path, content)


@given(data=st.data())
def test_no_garbage_raises(data, workshop):
    system, files = workshop
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    garbage = st.one_of(
        st.binary(max_size=200),
        st.integers(0, len(whole)).map(lambda end: whole[:end]),
        st.binary(max_size=20).map(lambda extra: whole + extra),
    )
    damage(system, path, data.draw(garbage))
