"""Signals end a bench, and the settings are put back first."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from oat_edge.device import control
from oat_edge.device.control import held
from tests.device.machines import JETSON_CLOCKS, Machine, silent, start_bench


def test_the_signals_handlers_are_the_old_ones_afterwards(pc: Machine) -> None:
    before = [signal.getsignal(number) for number in control.ENDING]
    with held(pc.system, lock_clocks=True, power_mode=None, on_gpu=False, say=silent):
        assert [signal.getsignal(number) for number in control.ENDING] != before
    assert [signal.getsignal(number) for number in control.ENDING] == before


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
