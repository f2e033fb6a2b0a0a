import time
from pathlib import Path

import pytest

from oat_edge.device.monitor import CORE_READINGS_PER_S, Monitor
from oat_edge.device.state import state_of
from tests.device.machines import Live
from tests.device.test_monitor import seen


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A machine of 64 cores."""
    for core in range(64):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text("2600000\n")
    return tmp_path


def test_parts_of_a_quick_bench_hold_enough_clocks_of_the_cpu(big: Path) -> None:
    with Monitor(Live(big), on_gpu=False) as monitor:
        time.sleep(0.2)
        spans = [seen(monitor, 0.25) for _ in range(4)]
    # 10 each on an idle machine; on a busy one the thread comes late.
    assert sum(span.clock_readings["cpu"] for span in spans) >= 20
    assert state_of(spans, on_gpu=False)[0].clock_note is None


def test_a_cpu_that_does_not_run_the_network_is_read_seldom(big: Path) -> None:
    with Monitor(Live(big), on_gpu=True) as monitor:
        assert 1 <= seen(monitor, 1.0).clock_readings["cpu"] <= 6


def test_the_clocks_of_many_cores_cost_little(big: Path) -> None:
    for core in range(64, 512):
        folder = big / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text("2600000\n")
    with Monitor(Live(big), on_gpu=False) as monitor:
        readings = seen(monitor, 1.0).clock_readings["cpu"]
    assert readings * 512 <= 1.3 * CORE_READINGS_PER_S
