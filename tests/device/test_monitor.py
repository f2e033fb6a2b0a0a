"""The monitor's thread on trees of files that change while it reads them."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oat_edge.device.monitor import Monitor
from oat_edge.device.state import SpanState, power_of, state_of
from oat_edge.device.system import System

TREES = Path(__file__).parent / "trees"


GPU_CLOCK = "sys/class/devfreq/17000000.gpu/cur_freq"


RAIL = "sys/bus/i2c/devices/1-0040/hwmon/hwmon1"


OC3 = "sys/class/hwmon/hwmon3/oc3_event_cnt"


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    """A copy of the Orin Nano's tree, to be changed."""
    return shutil.copytree(TREES / "orin-nano", tmp_path / "nano", symlinks=True)


@pytest.fixture
def packages(tmp_path: Path) -> Iterator[Path]:
    """RAPL of one package that draws 40 W for as long as the test runs, renewed as on a PC."""
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("30000000\n")
    counter, stop = zone / "energy_uj", threading.Event()
    start = time.perf_counter()

    def count() -> None:
        while not stop.is_set():
            joules = 40 * (time.perf_counter() - start) + 20
            # As one write of one line, the way a kernel's file changes.
            temporary = zone / "next"
            temporary.write_text(f"{int(joules * 1e6) % 30_000_000}\n")
            temporary.replace(counter)
            stop.wait(0.005)

    thread = threading.Thread(target=count)
    thread.start()
    while not counter.exists():
        time.sleep(0.01)
    yield tmp_path
    stop.set()
    thread.join()


def rewrite(root: Path, name: str, content: object) -> None:
    """Change a file at once: a reader sees the old content or the new."""
    temporary = root / "rewritten"
    temporary.write_text(f"{content}\n")
    temporary.replace(root / name)


def seen(monitor: Monitor, seconds: float = 0.4) -> SpanState:
    start_ns = time.perf_counter_ns()
    time.sleep(seconds)
    return monitor.span(start_ns, time.perf_counter_ns())


def test_a_still_board_gives_its_power_and_state(nano: Path) -> None:
    with Monitor(System(nano), on_gpu=True) as monitor:
        idle = monitor.idle(0.3)
        part = seen(monitor, 1.0)
        facts = monitor.facts()
    assert idle.mean_w == pytest.approx(5.064 * 0.960)
    assert part.mean_w == pytest.approx(idle.mean_w)
    assert part.clocks_mhz["gpu"].median == 306 and part.clocks_mhz["cpu"].max == 729.6
    assert part.temperatures_c["tj-thermal"] == pytest.approx(47.562)
    assert "cv0-thermal" not in part.temperatures_c  # switched off, it cannot be read
    assert part.throttled == ()
    assert (facts.source, facts.rate_hz, facts.averaging_s) == ("ina3221", 20.0, 0.002)
    assert 0 < facts.readings_per_s < 25
    assert 0 < facts.overhead < 0.5
    assert f"{RAIL}/in1_input" in facts.reads and GPU_CLOCK in facts.reads
    # Six cores are one line of a report, and so are a server's two hundred.
    assert [name for name in facts.reads if "scaling_cur_freq" in name] == [
        "sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"
    ]
    power, reason = power_of([part] * 5, images=50, facts=facts, idle=idle)
    assert reason is None and power is not None
    assert power.energy_mj == pytest.approx(5.064 * 0.960 * part.seconds * 5 / 50 * 1000)


def test_power_of_each_part_is_its_own(nano: Path) -> None:
    with Monitor(System(nano), on_gpu=True) as monitor:
        spans = []
        for milliampere in (1000, 3000):
            rewrite(nano, f"{RAIL}/curr1_input", milliampere)
            # A reading may have begun before the change.
            time.sleep(0.2)
            spans.append(seen(monitor))
    assert [span.mean_w for span in spans] == [pytest.approx(5.064), pytest.approx(15.192)]


def test_a_span_of_the_past_is_still_known(nano: Path) -> None:
    with Monitor(System(nano), on_gpu=True) as monitor:
        time.sleep(0.2)
        start_ns = time.perf_counter_ns()
        time.sleep(0.5)
        end_ns = time.perf_counter_ns()
        rewrite(nano, f"{RAIL}/curr1_input", 4000)
        time.sleep(0.5)
        assert monitor.span(start_ns, end_ns).mean_w == pytest.approx(5.064 * 0.960)
    # And when it has stopped.
    assert monitor.span(start_ns, end_ns).mean_w == pytest.approx(5.064 * 0.960)


def test_a_falling_clock_is_seen(nano: Path) -> None:
    rewrite(nano, GPU_CLOCK, 1_020_000_000)
    with Monitor(System(nano), on_gpu=True) as monitor:
        first = seen(monitor)
        rewrite(nano, GPU_CLOCK, 612_000_000)
        time.sleep(0.2)
        second = seen(monitor)
    state, warnings = state_of([first, second], on_gpu=True)
    assert any("the GPU fell from 1020 to 612 MHz" in warning for warning in warnings)
    assert state.clock_mhz is not None
    assert (state.clock_mhz.min, state.clock_mhz.max) == (612, 1020)


def test_throttling_is_seen_in_its_span_only(nano: Path) -> None:
    with Monitor(System(nano), on_gpu=True) as monitor:
        before = seen(monitor)
        start_ns = time.perf_counter_ns()
        time.sleep(0.3)
        rewrite(nano, OC3, 181)  # it was 2
        time.sleep(0.3)
        during = monitor.span(start_ns, time.perf_counter_ns())
        time.sleep(0.2)
        after = seen(monitor)
    assert before.throttled == () and after.throttled == ()
    assert during.throttled == ("instantaneous over-current (oc3), 179 times",)


def test_the_hottest_moment_counts(nano: Path) -> None:
    zone = "sys/class/thermal/thermal_zone1/temp"
    with Monitor(System(nano), on_gpu=True) as monitor:
        start_ns = time.perf_counter_ns()
        time.sleep(0.3)
        rewrite(nano, zone, 88_500)
        time.sleep(0.8)
        rewrite(nano, zone, 50_000)
        time.sleep(0.3)
        span = monitor.span(start_ns, time.perf_counter_ns())
    assert span.temperatures_c["gpu-thermal"] == 88.5
    assert state_of([span], on_gpu=True)[0].temperature_c == 88.5


def broken_by_removal(path: Path) -> None:
    path.unlink()


def broken_by_an_error(path: Path) -> None:
    path.unlink()
    path.mkdir()  # reading it is an OSError, as EIO and EAGAIN are


def broken_by_nonsense(path: Path) -> None:
    path.write_text("<error>\n")


@pytest.mark.parametrize(
    "breaks", [broken_by_removal, broken_by_an_error, broken_by_nonsense], ids=lambda f: f.__name__
)
def test_a_file_that_breaks_costs_its_figure_only(
    nano: Path, breaks: Callable[[Path], None]
) -> None:
    with Monitor(System(nano), on_gpu=True) as monitor:
        assert seen(monitor).mean_w is not None
        breaks(nano / f"{RAIL}/in1_input")
        breaks(nano / OC3)
        time.sleep(0.2)
        without = seen(monitor)
        assert without.mean_w is None and without.power_readings == 0
        assert without.clocks_mhz["gpu"].median == 306
        breaks(nano / GPU_CLOCK)
        time.sleep(0.2)
        assert "gpu" not in seen(monitor).clocks_mhz
        facts = monitor.facts()
    power, reason = power_of([without], images=9, facts=facts, idle=None)
    assert power is None and reason is not None and "no reading of ina3221" in reason


def test_a_board_without_any_sensor_still_has_its_state() -> None:
    with Monitor(System(TREES / "raspberry-pi"), on_gpu=False) as monitor:
        span, facts = seen(monitor), monitor.facts()
    assert monitor.source is None and facts.source is None and "RAPL" in (facts.reason or "")
    assert span.mean_w is None and span.clocks_mhz["cpu"].median == 1500
    assert span.temperatures_c == {"cpu-thermal": 48.85}


def test_an_empty_machine_gives_nothing_and_fails_nowhere(tmp_path: Path) -> None:
    with Monitor(System(tmp_path), on_gpu=True) as monitor:
        span = monitor.idle(0.1)
    assert span.mean_w is None and span.clocks_mhz == {} and span.temperatures_c == {}


def test_a_counter_gives_mean_power_over_wraps(packages: Path) -> None:
    with Monitor(System(packages), on_gpu=False) as monitor:
        time.sleep(0.5)
        span = seen(monitor, 2.0)
    # 40 W for 2 s is more than the counter's range of 30 J.
    assert span.mean_w == pytest.approx(40, rel=0.05)
    assert span.power_readings > 20


def test_heat_throttling_of_pcs_is_seen(tmp_path: Path) -> None:
    cores = [f"sys/devices/system/cpu/cpu{core}/thermal_throttle" for core in range(2)]
    for folder in cores:
        (tmp_path / folder).mkdir(parents=True)
        rewrite(tmp_path, f"{folder}/core_throttle_count", 5)
    with Monitor(System(tmp_path), on_gpu=False) as monitor:
        start_ns = time.perf_counter_ns()
        time.sleep(0.3)
        rewrite(tmp_path, f"{cores[1]}/core_throttle_count", 8)
        time.sleep(0.3)
        span = monitor.span(start_ns, time.perf_counter_ns())
    assert span.throttled == ("CPU too hot (core_throttle_count), 3 times",)


def test_a_core_that_comes_back_is_not_a_hot_one(tmp_path: Path) -> None:
    cores = [f"sys/devices/system/cpu/cpu{core}/thermal_throttle" for core in range(2)]
    for folder in cores:
        (tmp_path / folder).mkdir(parents=True)
        rewrite(tmp_path, f"{folder}/core_throttle_count", 5)
    with Monitor(System(tmp_path), on_gpu=False) as monitor:
        (tmp_path / cores[1] / "core_throttle_count").unlink()
        time.sleep(0.3)
        start_ns = time.perf_counter_ns()
        time.sleep(0.2)
        rewrite(tmp_path, f"{cores[1]}/core_throttle_count", 5)
        time.sleep(0.3)
        assert monitor.span(start_ns, time.perf_counter_ns()).throttled == ()


def test_it_stops_at_once(nano: Path) -> None:
    with Monitor(System(nano), on_gpu=True, rate_hz=0.5) as monitor:
        thread = monitor._thread
        time.sleep(0.1)
        assert thread.is_alive()
    # Its period is 2 s: it does not wait for the next reading.
    assert not thread.is_alive()


def test_a_source_that_blocks_does_not_keep_the_program(nano: Path) -> None:
    with Monitor(System(nano), on_gpu=True) as monitor:
        assert monitor.source is not None
        blocked = threading.Event()

        def read() -> float:
            blocked.wait(5)
            return 1.0

        monitor.source.read = read  # type: ignore[method-assign]
        time.sleep(0.2)
        leaving_s = time.monotonic()
    assert time.monotonic() - leaving_s < 2
    blocked.set()


def test_times_of_another_process_are_on_the_same_clock(nano: Path) -> None:
    look = (
        "import time; a = time.perf_counter_ns(); time.sleep(0.5); print(a, time.perf_counter_ns())"
    )
    with Monitor(System(nano), on_gpu=True) as monitor:
        time.sleep(0.1)
        told = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
        start_ns, end_ns = map(int, told.stdout.split())
        assert monitor.span(start_ns, end_ns).mean_w == pytest.approx(5.064 * 0.960)
