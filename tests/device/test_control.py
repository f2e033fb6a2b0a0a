"""Settings are put back however a bench ends."""

from __future__ import annotations

import json
import os

import pytest

from oat_edge.device.control import held, restore_leftover
from oat_edge.device.system import System
from oat_edge.errors import DependencyError, InputError
from tests.device.machines import JETSON_CLOCKS, Machine, governors, silent


def test_nothing_is_touched_without_a_request(jetson: Machine) -> None:
    with held(jetson.system, lock_clocks=False, power_mode=None, on_gpu=True, say=silent) as report:
        assert report == {}
    assert jetson.log() == [] and not jetson.state.exists()


def test_a_jetson_is_set_and_put_back_in_reverse(jetson: Machine) -> None:
    said: list[str] = []
    with held(
        jetson.system, lock_clocks=True, power_mode="MODE_25W", on_gpu=True, say=said.append
    ) as report:
        assert jetson.has("mode") == "1 MODE_25W"
        # The mode came first: the clocks are the highest of the new one.
        assert jetson.has("clocks") == "MODE_25W highest"
        assert jetson.record.exists()
    assert jetson.is_as_it_was()
    assert jetson.log() == [
        "nvpmodel -m 1", "jetson_clocks --store", "jetson_clocks ",
        "jetson_clocks --restore", "nvpmodel -m 0",
    ]  # fmt: skip
    assert report["set"]["power_mode"] == "power mode MODE_25W (1)"
    assert report["before"]["power_mode"] == "power mode 15W (0)"
    assert json.loads(json.dumps(report)) == report
    assert "MODE_25W" in said[0]


def test_a_tool_that_fails_midway_leaves_nothing_changed(jetson: Machine) -> None:
    (jetson.tools / "jetson_clocks").write_text(
        JETSON_CLOCKS.replace('  "") ', '  "") echo half > clocks; echo broken >&2; exit 3;')
    )
    with (
        pytest.raises(DependencyError, match=r"`jetson_clocks` failed \(broken\)"),
        held(jetson.system, lock_clocks=True, power_mode="25W", on_gpu=True, say=silent),
    ):
        raise AssertionError("never entered")
    assert jetson.is_as_it_was()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_in_the_bench_puts_it_back(jetson: Machine, error: type[BaseException]) -> None:
    with (
        pytest.raises(error),
        held(jetson.system, lock_clocks=True, power_mode="25W", on_gpu=False, say=silent),
    ):
        raise error
    assert jetson.is_as_it_was()


def test_without_root_it_names_sudo(pc: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with (
        pytest.raises(DependencyError, match="sudo"),
        held(pc.system, lock_clocks=True, power_mode=None, on_gpu=False, say=silent),
    ):
        raise AssertionError("never entered")
    assert governors(pc) == ["schedutil", "schedutil", "powersave"]


def test_a_recorded_tree_is_never_changed(pc: Machine) -> None:
    with (
        pytest.raises(InputError, match="recorded tree"),
        held(System(pc.root), lock_clocks=True, power_mode=None, on_gpu=False, say=silent),
    ):
        raise AssertionError("never entered")
    assert governors(pc) == ["schedutil", "schedutil", "powersave"]


def test_two_benches_do_not_hold_one_machine(pc: Machine) -> None:
    with held(pc.system, lock_clocks=True, power_mode=None, on_gpu=False, say=silent):
        with (
            pytest.raises(InputError, match="another bench holds"),
            held(pc.system, lock_clocks=True, power_mode=None, on_gpu=False, say=silent),
        ):
            raise AssertionError("never entered")
        # Nor does a bench without such options free what a living one holds.
        restore_leftover(pc.system, silent)
        assert governors(pc) == ["performance"] * 3
    assert governors(pc) == ["schedutil", "schedutil", "powersave"]
