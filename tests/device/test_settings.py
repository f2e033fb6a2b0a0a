"""Each setting is changed as asked, and put back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from oat_edge.device import settings
from oat_edge.device.control import held
from oat_edge.errors import DependencyError, InputError
from tests.device.machines import Machine, governors, silent


@pytest.mark.parametrize("name", ["1", "MODE_25W", "25W", "25w"])
def test_a_power_mode_has_a_name_and_a_number(jetson: Machine, name: str) -> None:
    with held(jetson.system, lock_clocks=False, power_mode=name, on_gpu=True, say=silent):
        assert jetson.has("mode") == "1 MODE_25W"
    assert jetson.is_as_it_was()


def test_the_mode_that_is_set_is_not_set_again(jetson: Machine) -> None:
    with held(
        jetson.system, lock_clocks=False, power_mode="15W", on_gpu=True, say=silent
    ) as report:
        assert not jetson.record.exists()
    assert jetson.log() == [] and report["before"] == {}


def test_an_unknown_power_mode_lists_those_there_are(jetson: Machine) -> None:
    for name in ("60W", "7"):
        with (
            pytest.raises(InputError, match=r"15W \(0\), MODE_25W \(1\), MAXN_SUPER \(2\)"),
            held(jetson.system, lock_clocks=True, power_mode=name, on_gpu=True, say=silent),
        ):
            raise AssertionError("never entered")
    assert jetson.is_as_it_was() and jetson.log() == []


@pytest.fixture
def willing(tmp_path: Path) -> Iterator[None]:
    """Standard input says yes to whatever is asked."""
    (tmp_path / "yes").write_text("yes\n" * 9)
    before, answers = os.dup(0), os.open(tmp_path / "yes", os.O_RDONLY)
    os.dup2(answers, 0)
    yield
    os.dup2(before, 0)
    os.close(before)
    os.close(answers)


@pytest.mark.usefixtures("willing")
def test_a_mode_that_needs_a_restart_is_an_error_and_restarts_nothing(jetson: Machine) -> None:
    with (
        pytest.raises(DependencyError, match="needs a restart: sudo nvpmodel -m 2"),
        held(jetson.system, lock_clocks=True, power_mode="MAXN_SUPER", on_gpu=True, say=silent),
    ):
        raise AssertionError("never entered")
    assert jetson.is_as_it_was() and "rebooted" not in jetson.log()


def test_a_missing_tool_is_named(jetson: Machine) -> None:
    (jetson.tools / "jetson_clocks").unlink()
    with (
        pytest.raises(DependencyError, match="jetson_clocks is not there"),
        held(jetson.system, lock_clocks=True, power_mode=None, on_gpu=True, say=silent),
    ):
        raise AssertionError("never entered")


def test_a_cpu_gets_its_governors_back_each_its_own(pc: Machine) -> None:
    with held(pc.system, lock_clocks=True, power_mode=None, on_gpu=False, say=silent) as report:
        assert governors(pc) == ["performance"] * 3
    assert governors(pc) == ["schedutil", "schedutil", "powersave"]
    assert report["before"] == {"governors": "CPU governor powersave, schedutil"}
    assert not pc.record.exists()


def test_a_machine_without_governors_says_so(machine: Machine) -> None:
    with (
        pytest.raises(DependencyError, match="no CPU governor"),
        held(machine.system, lock_clocks=True, power_mode=None, on_gpu=False, say=silent),
    ):
        raise AssertionError("never entered")


@pytest.mark.parametrize(
    ("known", "fixed"), [("1755, 1980", "1755,1755"), ("[N/A], 2520", "2520,2520")]
)
def test_a_desktop_gpu_is_fixed_and_freed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, known: str, fixed: str
) -> None:
    monkeypatch.setattr(settings, "bus_id", lambda: "0000:01:00.0")
    (machine.tools / "clocks_known").write_text(f"{known}\n")
    with held(machine.system, lock_clocks=True, power_mode=None, on_gpu=True, say=silent):
        assert machine.has("clocks") == fixed
    assert machine.is_as_it_was()
    assert all("-i 0000:01:00.0" in line for line in machine.log())


def test_a_power_mode_is_for_jetsons(pc: Machine) -> None:
    with (
        pytest.raises(InputError, match="is for Jetsons"),
        held(pc.system, lock_clocks=False, power_mode="15W", on_gpu=False, say=silent),
    ):
        raise AssertionError("never entered")


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ("1095, 1410", "1095 MHz, its default application clock of at most 1410 MHz"),
        ("1980, 1980", "1980 MHz, its highest"),
        ("[N/A], 2520", "2520 MHz, its highest"),
        ("1095, [N/A]", "1095 MHz, its default application clock ("),
    ],
)
def test_the_report_says_which_clock_of_a_gpu_is_fixed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, known: str, words: str
) -> None:
    monkeypatch.setattr(settings, "bus_id", lambda: "0000:01:00.0")
    (machine.tools / "clocks_known").write_text(f"{known}\n")
    with held(machine.system, lock_clocks=True, power_mode=None, on_gpu=True, say=silent) as report:
        assert words in report["set"]["clocks"]
    # An admin's own -lgc cannot be read, and so not be put back.
    assert "nvidia-smi does not tell" in report["before"]["gpu_clocks"]


def test_a_gpu_that_tells_no_clock_is_left_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "bus_id", lambda: "0000:01:00.0")
    (machine.tools / "clocks_known").write_text("[N/A], [N/A]\n")
    with (
        pytest.raises(DependencyError, match="tells no clock"),
        held(machine.system, lock_clocks=True, power_mode=None, on_gpu=True, say=silent),
    ):
        raise AssertionError("never entered")
    assert machine.is_as_it_was()
