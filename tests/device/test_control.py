"""Settings are put back however a bench ends.

The tools are small scripts that keep their state in files and do what NVIDIA documents of nvpmodel
(developer guide, "Supported Modes and Power Efficiency"), of jetson_clocks (its --help, and what
its text asks about an existing file) and of nvidia-smi (its manual): they stand in for the tools,
not for what is tested.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from oat_edge.device import control, settings
from oat_edge.device.control import held, restore_leftover
from oat_edge.device.system import System
from oat_edge.errors import DependencyError, InputError

NVPMODEL = """#!/bin/sh
cd "$TOOLS" && echo "nvpmodel $*" >> log
case "$1" in
  -q) echo "NV Fan Mode:quiet"; echo "NV Power Mode: $(cut -d' ' -f2 mode)"; cut -d' ' -f1 mode ;;
  -m)
    case "$2" in
      0) echo "0 15W" > mode ;;
      1) echo "1 MODE_25W" > mode ;;
      2) echo "NVPM WARN: Reboot required for changing to this power mode: 2"
         echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
         read answer || echo "NVPM ERROR: bad input!"
         test "$answer" = yes && echo rebooted >> log ;;
    esac ;;
esac
exit 0
"""
JETSON_CLOCKS = """#!/bin/sh
cd "$TOOLS" && echo "jetson_clocks $1" >> log
case "$1" in
  --store)
    if [ -e "$2" ]; then
      echo "File $2 already exists. Can I overwrite it? Y/N:"
      read answer || { echo "Error: file $2 already exists!"; exit 1; }
    fi
    cat clocks > "$2" ;;
  --restore)
    [ -e "$2" ] || { echo "Error: $2 file not found !"; exit 1; }
    cat "$2" > clocks ;;
  "") echo "$(cut -d' ' -f2 mode) highest" > clocks ;;
esac
"""
NVIDIA_SMI = """#!/bin/sh
cd "$TOOLS" && echo "nvidia-smi $*" >> log
case "$3" in
  --query-gpu=*) cat clocks_known ;;
  -lgc) echo "$4" > clocks ;;
  -rgc) echo free > clocks ;;
esac
"""
MODES = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=MODE_25W >\n" + (
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
)


class Live(System):
    """A tree that stands for the running machine: it may be changed, tools are really run."""

    __slots__ = ()

    @property
    def recorded(self) -> bool:
        return False


@dataclass
class Machine:
    root: Path
    tools: Path
    cache: Path

    @property
    def system(self) -> System:
        return Live(self.root)

    def has(self, tool: str) -> str:
        return (self.tools / tool).read_text().strip()

    def log(self) -> list[str]:
        log = self.tools / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if line != "nvpmodel -q"]

    @property
    def record(self) -> Path:
        return self.cache / "oat-edge/control/before.json"

    def is_as_it_was(self) -> bool:
        as_was = (self.has("mode"), self.has("clocks")) == ("0 15W", "free")
        return as_was and not self.record.exists()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine of no kind, its tools on PATH, on which one is root."""
    root, tools, cache = (tmp_path / name for name in ("root", "tools", "cache"))
    for folder in (root / "proc/sys/kernel/random", tools, cache):
        folder.mkdir(parents=True)
    (root / "proc/sys/kernel/random/boot_id").write_text("first\n")
    for name, script in (
        ("nvpmodel", NVPMODEL), ("jetson_clocks", JETSON_CLOCKS), ("nvidia-smi", NVIDIA_SMI),
    ):  # fmt: skip
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    (tools / "mode").write_text("0 15W\n")
    (tools / "clocks").write_text("free\n")
    (tools / "clocks_known").write_text("1755, 1980\n")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("TOOLS", str(tools))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return Machine(root, tools, cache)


@pytest.fixture
def jetson(machine: Machine) -> Machine:
    tree = machine.root / "proc/device-tree"
    tree.mkdir()
    (tree / "compatible").write_text("nvidia,p3767-0005\0nvidia,tegra234\0")
    (machine.root / "etc").mkdir()
    (machine.root / "etc/nvpmodel.conf").write_text(MODES)
    return machine


@pytest.fixture
def pc(machine: Machine) -> Machine:
    for core, governor in enumerate(("schedutil", "schedutil", "powersave")):
        folder = machine.root / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")
    return machine


def governors(machine: Machine) -> list[str]:
    files = sorted(machine.root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"))
    return [file.read_text().strip() for file in files]


def silent(text: str) -> None:
    pass


def test_nothing_is_touched_without_a_request(jetson: Machine) -> None:
    with held(jetson.system, lock_clocks=False, power_mode=None, on_gpu=True, say=silent) as report:
        assert report == {}
    assert jetson.log() == [] and not (jetson.cache / "oat-edge").exists()


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


def test_a_missing_tool_is_named(jetson: Machine) -> None:
    (jetson.tools / "jetson_clocks").unlink()
    with (
        pytest.raises(DependencyError, match="jetson_clocks is not there"),
        held(jetson.system, lock_clocks=True, power_mode=None, on_gpu=True, say=silent),
    ):
        raise AssertionError("never entered")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_in_the_bench_puts_it_back(jetson: Machine, error: type[BaseException]) -> None:
    with (
        pytest.raises(error),
        held(jetson.system, lock_clocks=True, power_mode="25W", on_gpu=False, say=silent),
    ):
        raise error
    assert jetson.is_as_it_was()


def test_the_signals_handlers_are_the_old_ones_afterwards(pc: Machine) -> None:
    before = [signal.getsignal(number) for number in control.ENDING]
    with held(pc.system, lock_clocks=True, power_mode=None, on_gpu=False, say=silent):
        assert [signal.getsignal(number) for number in control.ENDING] != before
    assert [signal.getsignal(number) for number in control.ENDING] == before


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


# A bench in a process of its own: it holds the machine until it is told to end.
BENCH = """
import os, sys
from pathlib import Path
from oat_edge.device.control import held
from oat_edge.device.system import System

class Live(System):
    __slots__ = ()
    recorded = property(lambda self: False)

os.geteuid = lambda: 0
with held(
    Live(Path(sys.argv[1])), lock_clocks=True, power_mode="25W", on_gpu=True,
    say=lambda text: print(text, file=sys.stderr),
):
    print("held", flush=True)
    sys.stdin.readline()
"""


def start_bench(
    machine: Machine, prepare: Callable[[], object] | None = None
) -> subprocess.Popen[str]:
    bench = subprocess.Popen(
        [sys.executable, "-c", BENCH, str(machine.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )
    assert bench.stdout is not None
    assert bench.stdout.readline() == "held\n"
    assert machine.has("mode") == "1 MODE_25W" and machine.has("clocks") == "MODE_25W highest"
    return bench


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_puts_it_back_and_still_ends_the_process(
    jetson: Machine, number: signal.Signals
) -> None:
    bench = start_bench(jetson)
    bench.send_signal(number)
    _, stderr = bench.communicate(timeout=30)
    assert jetson.is_as_it_was(), stderr
    assert bench.returncode == -number


def wait_for(bench: subprocess.Popen[str], file: Path) -> None:
    while not file.exists():
        assert bench.poll() is None
        time.sleep(0.02)


def slow_to_restore(machine: Machine) -> None:
    slow = JETSON_CLOCKS.replace("  --restore)", "  --restore)\n    touch busy; sleep 1")
    assert slow != JETSON_CLOCKS
    (machine.tools / "jetson_clocks").write_text(slow)


def test_impatience_does_not_stop_it_from_being_put_back(jetson: Machine) -> None:
    bench = start_bench(jetson)
    slow_to_restore(jetson)
    bench.send_signal(signal.SIGINT)
    wait_for(bench, jetson.tools / "busy")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        bench.send_signal(number)
    bench.communicate(timeout=30)
    assert jetson.is_as_it_was()
    assert bench.returncode != 0


def test_a_signal_after_the_bench_waits_until_it_is_put_back(jetson: Machine) -> None:
    bench = start_bench(jetson)
    slow_to_restore(jetson)
    assert bench.stdin is not None
    bench.stdin.write("end\n")
    bench.stdin.flush()
    wait_for(bench, jetson.tools / "busy")
    bench.send_signal(signal.SIGTERM)
    bench.communicate(timeout=30)
    assert jetson.is_as_it_was()
    assert bench.returncode == -signal.SIGTERM


def test_a_hang_up_that_is_ignored_stays_ignored(jetson: Machine) -> None:
    bench = start_bench(jetson, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # as nohup
    bench.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert bench.poll() is None and jetson.has("mode") == "1 MODE_25W"
    bench.terminate()
    bench.communicate(timeout=30)
    assert jetson.is_as_it_was()


def kill(bench: subprocess.Popen[str]) -> None:
    bench.kill()
    bench.communicate(timeout=30)


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
