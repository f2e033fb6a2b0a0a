"""What a bench could not put back is remembered, and put back later."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from oat_edge.device import machine_files, record
from oat_edge.device.control import held, restore_leftover
from oat_edge.device.system import System
from oat_edge.errors import DependencyError, InputError
from tests.device.machines import Machine, governors, kill, silent, start_bench


def test_what_cannot_be_put_back_is_said_and_tried_again(jetson: Machine) -> None:
    said: list[str] = []
    with held(jetson.system, lock_clocks=True, power_mode="25W", on_gpu=True, say=said.append):
        (jetson.tools / "jetson_clocks").chmod(0o644)
    # The power mode is back all the same.
    assert jetson.has("mode") == "0 15W" and jetson.has("clocks") == "MODE_25W highest"
    assert any("not put back: clocks" in text for text in said)
    (jetson.tools / "jetson_clocks").chmod(0o755)
    restore_leftover(jetson.system, said.append)
    assert jetson.is_as_it_was()


def test_what_kill_9_left_the_next_bench_puts_back(jetson: Machine) -> None:
    kill(start_bench(jetson))
    assert jetson.has("mode") == "1 MODE_25W" and jetson.record.exists()
    said: list[str] = []
    restore_leftover(jetson.system, said.append)
    assert jetson.is_as_it_was()
    assert "power mode 15W (0)" in said[0]
    restore_leftover(jetson.system, said.append)
    assert len(said) == 1


def test_a_bench_that_holds_puts_back_the_state_before_the_killed_one(jetson: Machine) -> None:
    kill(start_bench(jetson))
    with held(jetson.system, lock_clocks=True, power_mode=None, on_gpu=True, say=silent):
        assert jetson.has("clocks") == "15W highest"
    assert jetson.is_as_it_was()


def test_after_a_power_cut_only_the_mode_is_still_changed(jetson: Machine) -> None:
    kill(start_bench(jetson))
    (jetson.root / "proc/sys/kernel/random/boot_id").write_text("second\n")
    (jetson.tools / "clocks").write_text("fresh\n")
    restore_leftover(jetson.system, silent)
    assert (jetson.has("mode"), jetson.has("clocks")) == ("0 15W", "fresh")
    assert not jetson.record.exists()


def test_a_leftover_without_root_is_told_and_kept(
    jetson: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(start_bench(jetson))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said: list[str] = []
    restore_leftover(jetson.system, said.append)
    assert "sudo" in said[0] and jetson.record.exists() and jetson.has("mode") == "1 MODE_25W"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"boot_id": "first", "before": 3, "was": {}}'])
def test_a_damaged_record_is_dropped(jetson: Machine, text: str) -> None:
    jetson.record.parent.mkdir(parents=True)
    jetson.record.write_text(text)
    restore_leftover(jetson.system, silent)
    assert jetson.is_as_it_was() and jetson.log() == []


def test_a_recorded_tree_has_no_leftover(jetson: Machine) -> None:
    kill(start_bench(jetson))
    restore_leftover(System(jetson.root), silent)
    assert jetson.has("mode") == "1 MODE_25W" and jetson.record.exists()


def full_disk(*_: object) -> None:
    raise InputError("cannot write before.json (No space left on device): make room")


def test_a_disk_that_is_full_keeps_nothing_from_being_put_back(
    jetson: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with held(jetson.system, lock_clocks=True, power_mode="25W", on_gpu=True, say=said.append):
        monkeypatch.setattr(record, "write_json", full_disk)
    assert jetson.is_as_it_was()
    assert any("No space left" in text and "does not say so" in text for text in said)


def test_what_a_full_disk_left_in_the_record_is_not_put_back_twice(
    jetson: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        monkeypatch.context() as full,
        held(jetson.system, lock_clocks=True, power_mode="25W", on_gpu=True, say=silent),
    ):
        full.setattr(record, "write_json", full_disk)
        (jetson.tools / "nvpmodel").chmod(0o644)  # the clocks are put back, the mode is not
    assert jetson.record.exists() and "clocks" in json.loads(jetson.record.read_text())["before"]
    (jetson.tools / "nvpmodel").chmod(0o755)
    said: list[str] = []
    restore_leftover(jetson.system, said.append)
    assert jetson.has("mode") == "0 15W" and not jetson.record.exists() and len(said) == 1


def test_what_cannot_be_noted_is_not_changed(
    jetson: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "write_json", full_disk)
    with (
        pytest.raises(InputError, match="No space left"),
        held(jetson.system, lock_clocks=False, power_mode="25W", on_gpu=True, say=silent),
    ):
        raise AssertionError("never entered")
    assert jetson.is_as_it_was() and jetson.log() == []


def test_the_oldest_state_is_kept_until_it_is_back(jetson: Machine) -> None:
    kill(start_bench(jetson))
    tool, works = jetson.tools / "jetson_clocks", (jetson.tools / "jetson_clocks").read_text()
    # It fixes clocks, but restores none, and so the mode is all that is put back.
    tool.write_text(works.replace("--restore)", "--restore) exit 3;;\n  never)"))
    with held(jetson.system, lock_clocks=True, power_mode=None, on_gpu=True, say=silent):
        assert jetson.has("clocks") == "15W highest"
    assert jetson.record.exists() and jetson.has("clocks") != "free"
    tool.write_text(works)
    restore_leftover(jetson.system, silent)
    assert jetson.is_as_it_was()


def test_the_oldest_power_mode_is_kept_too(jetson: Machine) -> None:
    kill(start_bench(jetson))
    tool, works = jetson.tools / "nvpmodel", (jetson.tools / "nvpmodel").read_text()
    tool.write_text(works.replace("    case", "    test -e stuck && exit 3\n    case"))
    (jetson.tools / "stuck").touch()
    (jetson.tools / "clocks").write_text("free\n")
    said: list[str] = []
    with held(jetson.system, lock_clocks=True, power_mode=None, on_gpu=True, say=said.append):
        assert jetson.has("mode") == "1 MODE_25W"
    assert any("not put back: power mode 15W (0)" in text for text in said)
    (jetson.tools / "stuck").unlink()
    restore_leftover(jetson.system, silent)
    assert jetson.is_as_it_was()


def test_governors_of_two_benches_are_put_together(pc: Machine) -> None:
    left = record.Changed(pc.system, pc.state)
    pc.state.mkdir()
    name = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor".format
    left.will("governors", {name(0): "powersave"}, was="CPU governor powersave")
    left.will("governors", {name(0): "performance", name(1): "ondemand"}, was="later")
    assert left.was == {"governors": "CPU governor powersave"}
    left.restore(silent)
    assert governors(pc) == ["powersave", "ondemand", "powersave"] and not pc.record.exists()


def test_a_folder_that_cannot_be_written_names_the_variable(
    pc: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pc.state.write_text("a file")
    with (
        pytest.raises(DependencyError, match=machine_files.VARIABLE),
        held(pc.system, lock_clocks=True, power_mode=None, on_gpu=False, say=silent),
    ):
        raise AssertionError("never entered")
    assert governors(pc) == ["schedutil", "schedutil", "powersave"]


def test_the_home_of_who_benches_does_not_matter(
    jetson: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kill(start_bench(jetson))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    restore_leftover(jetson.system, silent)
    assert jetson.is_as_it_was()


@pytest.fixture
def public(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The machine's state where other users can get at it: pytest's folders are closed to them."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    monkeypatch.setenv(machine_files.VARIABLE, str(folder / "state"))
    yield folder / "state"
    shutil.rmtree(folder)


LOOK = """
import os
from oat_edge.device.control import restore_leftover
from oat_edge.device.system import System
os.setgid(65534); os.setuid(65534)
restore_leftover(System(), print)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, which takes root")
def test_another_user_is_told_what_root_left(public: Path, jetson: Machine) -> None:
    mask = os.umask(0o077)
    try:
        with held(jetson.system, lock_clocks=False, power_mode="25W", on_gpu=True, say=silent):
            file = public / "before.json"
            state = json.loads(file.read_text())
            # The child runs on this machine itself, which has another start.
            state["boot_id"] = System().read(record.BOOT_ID)
            file.write_text(json.dumps(state))
            told = subprocess.run(
                [sys.executable, "-c", LOOK], capture_output=True, text=True, check=True
            ).stdout
    finally:
        os.umask(mask)
    assert "before: power mode 15W (0)" in told and "sudo" in told
    assert public.stat().st_mode & 0o777 == 0o755
    assert (public / ".lock").stat().st_mode & 0o077 == 0
