import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from oat_edge.device import power
from oat_edge.device.power import power_source
from oat_edge.device.system import System
from tests.gpus import on_gpu

TREES = Path(__file__).parent / "trees"
JETSONS = ("orin-nano", "orin-nx", "agx-orin", "agx-thor")


def rapl_tree(root: Path, packages: int = 2) -> Path:
    """powercap as the kernel shows it: packages, and zones inside them that are parts of them."""
    folder = root / "sys/class/powercap"
    for package in range(packages):
        zones = {f"intel-rapl:{package}": f"package-{package}", f"intel-rapl:{package}:0": "core"}
        for zone, name in zones.items():
            (folder / zone).mkdir(parents=True)
            (folder / zone / "name").write_text(f"{name}\n")
            (folder / zone / "energy_uj").write_text("1000000\n")
            (folder / zone / "max_energy_range_uj").write_text("262143328850\n")
    (folder / "intel-rapl:9").mkdir()
    (folder / "intel-rapl:9/name").write_text("psys\n")
    (folder / "intel-rapl:9/energy_uj").write_text("9999999999\n")
    return folder


@pytest.mark.parametrize("on_gpu", [True, False])
@pytest.mark.parametrize("board", JETSONS)
def test_a_jetson_has_its_rails_for_both_processors(board: str, on_gpu: bool) -> None:
    source, reason = power_source(System(TREES / board), on_gpu=on_gpu)
    assert source is not None and reason is None
    assert source.name in ("ina3221", "ina238") and not source.counter
    assert 1 < source.read() < 60
    assert all((TREES / board / name).is_file() for name in source.reads)


def test_rails_lose_no_reading_time() -> None:
    source, _ = power_source(System(TREES / "agx-orin"), on_gpu=True)
    assert source is not None and source.averaging_s == pytest.approx(0.002)


def test_a_jetson_without_a_rule_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_text("nvidia,p0000\0nvidia,tegra234\0")
    source, reason = power_source(System(tmp_path), on_gpu=True)
    assert source is None and reason is not None and "INA3221" in reason
    folder = tmp_path / "sys/bus/i2c/devices/1-0040/hwmon/hwmon0"
    folder.mkdir(parents=True)
    (folder.parents[1] / "name").write_text("ina3221\n")
    for name, text in (("in1_label", "VDD_NEW"), ("in1_input", "5000"), ("curr1_input", "100")):
        (folder / name).write_text(f"{text}\n")
    source, reason = power_source(System(tmp_path), on_gpu=True)
    assert source is None and reason is not None and "VDD_NEW" in reason


def test_a_board_without_sensors_says_what_was_expected() -> None:
    source, reason = power_source(System(TREES / "raspberry-pi"), on_gpu=False)
    assert source is None and reason is not None and "RAPL" in reason


def test_rapl_counts_packages_only(tmp_path: Path) -> None:
    folder = rapl_tree(tmp_path)
    source, reason = power_source(System(tmp_path), on_gpu=False)
    assert source is not None and reason is None
    assert (source.name, source.scope, source.counter) == ("rapl", "CPU packages 0, 1", True)
    first = source.read()
    assert first == pytest.approx(2.0)
    (folder / "intel-rapl:0/energy_uj").write_text("3500000\n")
    (folder / "intel-rapl:0:0/energy_uj").write_text("9000000\n")
    assert source.read() - first == pytest.approx(2.5)


def test_rapl_of_one_package_wraps(tmp_path: Path) -> None:
    folder = rapl_tree(tmp_path, packages=1)
    (folder / "intel-rapl:0/energy_uj").write_text("262143328000\n")
    source, _ = power_source(System(tmp_path), on_gpu=False)
    assert source is not None and source.scope == "CPU package 0"
    first = source.read()
    (folder / "intel-rapl:0/energy_uj").write_text("1999150\n")
    assert source.read() - first == pytest.approx(2.0)


def test_rapl_that_only_root_reads_names_the_remedy(tmp_path: Path) -> None:
    folder = rapl_tree(tmp_path)
    # A folder cannot be read as a file, by root neither.
    (folder / "intel-rapl:1/energy_uj").unlink()
    (folder / "intel-rapl:1/energy_uj").mkdir()
    source, reason = power_source(System(tmp_path), on_gpu=False)
    assert source is None
    assert reason is not None and "root" in reason and "chmod a+r" in reason


def test_rapl_that_vanishes_is_an_os_error(tmp_path: Path) -> None:
    folder = rapl_tree(tmp_path)
    source, _ = power_source(System(tmp_path), on_gpu=False)
    assert source is not None
    (folder / "intel-rapl:1/energy_uj").unlink()
    with pytest.raises(OSError, match="intel-rapl:1"):
        source.read()


class Nvml(ModuleType):
    """nvidia-ml-py as its functions are documented, of a GPU that draws 100 W."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    class NVMLError(Exception):
        pass

    def __init__(self, *, counts: bool = True, supported: bool = True, reasons: int = 0) -> None:
        super().__init__("pynvml")
        self._millijoules, self._step = 5_000_000, 1000 if counts else 0
        self._supported, self._reasons = supported, reasons

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: bytes) -> object:
        return SimpleNamespace(bus_id=bus_id)

    def nvmlDeviceGetTotalEnergyConsumption(self, device: object) -> int:
        self._check()
        self._millijoules += self._step
        return self._millijoules

    def nvmlDeviceGetPowerUsage(self, device: object) -> int:
        self._check()
        return 100_000

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device: object) -> int:
        return self._reasons

    def _check(self) -> None:
        if not self._supported:
            raise self.NVMLError("Not Supported")


def use_nvml(monkeypatch: pytest.MonkeyPatch, nvml: Nvml) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(power, "bus_id", lambda: "0000:01:00.0")


def test_nvml_counts_energy_where_its_counter_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, Nvml())
    source, reason = power_source(System(), on_gpu=True)
    assert source is not None and reason is None
    assert (source.name, source.scope, source.counter) == ("nvml", "GPU board", True)
    first = source.read()
    assert source.read() - first == pytest.approx(1.0)


def test_nvml_tells_watts_where_its_counter_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, Nvml(counts=False))
    source, _ = power_source(System(), on_gpu=True)
    assert source is not None and not source.counter and source.averaging_s == 1.0
    assert source.read() == pytest.approx(100.0)


def test_nvml_without_values_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, Nvml(supported=False))
    source, reason = power_source(System(), on_gpu=True)
    assert source is None and reason is not None and "Not Supported" in reason


def test_a_missing_nvml_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    source, reason = power_source(System(), on_gpu=True)
    assert source is None and reason is not None and "pip install" in reason


def test_nvml_is_not_asked_for_a_recorded_tree(tmp_path: Path) -> None:
    source, reason = power_source(System(tmp_path), on_gpu=True)
    assert source is None and reason is not None and "recorded" in reason


def test_idle_clocks_and_clocks_that_were_set_are_no_throttling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_nvml(monkeypatch, Nvml(reasons=0x1 | 0x2))
    assert power.GpuBoard().throttled() == ()
    use_nvml(monkeypatch, Nvml(reasons=0x1 | 0x4 | 0x40))
    assert power.GpuBoard().throttled() == ("software power cap", "hardware thermal slowdown")


@on_gpu
def test_a_real_gpu_tells_its_energy() -> None:
    source, reason = power_source(System(), on_gpu=True)
    assert source is not None, reason
    assert source.read() > 0
    board = power.GpuBoard()
    assert 100 < board.clock_mhz() < 5000 and 10 < board.temperature_c() < 110
    assert isinstance(board.throttled(), tuple)
