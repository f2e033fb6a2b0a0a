from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from oat_edge.bench import schema
from oat_edge.bench.environment import Environment

TREES = Path(__file__).parents[1] / "device/trees"
ALL = ("orin-nano", "orin-nx", "agx-orin", "agx-thor", "raspberry-pi")


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ("orin-nano", ("Orin Nano", "L4T 36.4.7, JetPack 6.2.x, CUDA 12.6.68, TensorRT 10.3.0.30",
                       "MAXN_SUPER (2)", "no (sudo jetson_clocks", "306 MHz of 306 to 1020",
                       "30.2 %, quiet", "tj 47.6 °C", "oc3 2", "VDD_IN")),
        ("orin-nx", ("Orin NX", "JetPack 6.1", "clocks locked  yes", "100 %, cool", "VDD_IN")),
        ("agx-orin", ("AGX Orin", "MAXN (0)", "VDD_GPU_SOC")),
        ("agx-thor", ("AGX Thor", "JetPack 7.2", "120W (1)", "315 MHz of 315 to 1575", "VIN")),
    ],
)  # fmt: skip
def test_a_recorded_jetson(tree, said, main):
    ended = main("doctor", "--sysroot", TREES / tree)
    assert (ended.code, ended.err) == (0, "")
    for text in (*said, "not this machine", "Linux "):
        assert text in ended.out
    assert platform.release() not in ended.out


@pytest.mark.parametrize("tree", ALL)
def test_what_is_installed_here_is_not_told_of_a_recorded_machine(tree, main):
    ended = main("doctor", "--sysroot", TREES / tree)
    assert "onnxruntime" not in ended.out and "engines" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 100


def test_a_board_that_is_no_jetson(main):
    ended = main("doctor", "--sysroot", TREES / "raspberry-pi")
    assert ended.code == 0 and "Raspberry Pi 5" in ended.out and "Jetson " not in ended.out


@pytest.mark.parametrize("tree", ALL)
def test_json_has_the_same_facts(tree, main):
    ended = main("doctor", "--sysroot", TREES / tree, "--json", "-")
    value = json.loads(ended.out)
    assert set(value) == {"environment", "power", "gpu", "engines", "packages"}
    assert value["gpu"] is value["engines"] is value["packages"] is None
    found = schema.load(Environment, value["environment"], "environment")
    assert found.recorded_from == str(TREES / tree)
    if found.jetson is not None:
        assert f"L4T {found.jetson.l4t}" in ended.err and "Jetson" in ended.err
    for source in value["power"].values():
        assert (source["name"] is None) == (source["reason"] is not None)


def test_this_machine(main):
    ended = main("doctor", "--json", "facts.json")
    value = json.loads(Path("facts.json").read_text())
    assert ended.code == 0 and platform.release() in ended.out
    assert value["environment"]["recorded_from"] is None and value["packages"]["torch"]
    assert "onnxruntime" in ended.out and "trt engines:" in ended.out and "power, CPU" in ended.out
    before = ended.out.partition("\nGPU: ")[0]
    assert max(map(len, before.splitlines())) <= 100


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_tree_that_is_not_there_is_one_line(name, main):
    Path("file").touch()
    ended = main("doctor", "--sysroot", name)
    assert ended.code == 2 and ended.out == "" and len(ended.err.splitlines()) == 1
    assert name in ended.err and "expected" in ended.err


def test_an_empty_tree_is_a_machine_of_which_nothing_is_known(main):
    Path("empty/proc").mkdir(parents=True)
    ended = main("doctor", "--sysroot", "empty")
    assert ended.code == 0 and "unknown" in ended.out


def test_a_folder_of_something_else_is_no_machine(main):
    Path("docs").mkdir()
    ended = main("doctor", "--sysroot", "docs")
    (line,) = ended.err.splitlines()
    assert ended.code == 2 and "holds none of proc, sys, etc" in line
