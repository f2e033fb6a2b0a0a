from collections.abc import Callable
from pathlib import Path

import pytest

from oat_edge.device.rails import find_rails, total_of
from oat_edge.device.system import System

TREES = Path(__file__).parent / "trees"
# Board -> the rails of its total, from NVIDIA's developer guides (the sources are in rails.py).
TOTALS = {
    "orin-nano": ("VDD_IN",),
    "orin-nx": ("VDD_IN",),
    "agx-thor": ("VIN",),
    "agx-orin": ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
}


def chip(root: Path, *, name: str = "ina3221", address: str = "1-0040", **files: object) -> Path:
    """One power chip in a tree; further files of its hwmon folder by name."""
    device = root / "sys/bus/i2c/devices" / address
    folder = device / "hwmon/hwmon1"
    folder.mkdir(parents=True)
    (device / "name").write_text(f"{name}\n")
    for file, content in files.items():
        (folder / file).write_text(f"{content}\n")
    return folder


def channel(number: int, label: str, millivolt: int, milliampere: int) -> dict[str, object]:
    return {
        f"in{number}_label": label,
        f"in{number}_input": millivolt,
        f"curr{number}_input": milliampere,
    }


@pytest.mark.parametrize("board", TOTALS)
def test_total_of_each_board(board: str) -> None:
    total, reason = total_of(find_rails(System(TREES / board)))
    assert total is not None and reason is None
    assert tuple(rail.label for rail in total.rails) == TOTALS[board]


@pytest.mark.parametrize("board", TOTALS)
def test_total_is_volts_times_amperes(board: str) -> None:
    system = System(TREES / board)
    total, _ = total_of(find_rails(system))
    assert total is not None
    expected = 0.0
    for rail in total.rails:
        for label in (TREES / board).glob("sys/bus/i2c/devices/*/hwmon/*/in*_label"):
            if label.read_text().strip() == rail.label:
                number = label.name.removeprefix("in").removesuffix("_label")
                volt = int((label.parent / f"in{number}_input").read_text()) / 1000
                ampere = int((label.parent / f"curr{number}_input").read_text()) / 1000
                expected += volt * ampere
    assert sum(rail.watts(system) for rail in total.rails) == pytest.approx(expected, rel=1e-3)


def test_scope_says_whether_the_carrier_board_is_in_it() -> None:
    nano, _ = total_of(find_rails(System(TREES / "orin-nano")))
    thor, _ = total_of(find_rails(System(TREES / "agx-thor")))
    assert nano is not None and "VDD_IN" in nano.scope and "without the carrier" in nano.scope
    assert thor is not None and "VIN" in thor.scope and "module and carrier" in thor.scope


def test_rails_that_are_not_connected_or_sums_or_off_are_left_out(tmp_path: Path) -> None:
    files = {**channel(1, "NC", 0, 0), **channel(2, "VDD_SOC", 5000, 300)}
    files |= channel(3, "VDD_OFF", 5000, 100) | {"in3_enable": 0}
    chip(tmp_path, **files, in7_label="sum of shunt voltages", in7_input=5, curr4_input=400)
    assert [rail.label for rail in find_rails(System(tmp_path))] == ["VDD_SOC"]


def test_usb_supplies_and_other_chips_are_no_rails(tmp_path: Path) -> None:
    chip(tmp_path, name="tmp451", temp1_input=40000)
    supply = tmp_path / "sys/class/power_supply/ucsi-source-psy-1-00081"
    supply.mkdir(parents=True)
    (supply / "voltage_now").write_text("20000000\n")
    (supply / "current_now").write_text("5000000\n")
    assert find_rails(System(tmp_path)) == ()
    assert find_rails(System(TREES / "raspberry-pi")) == ()


def test_unknown_rails_are_never_summed(tmp_path: Path) -> None:
    chip(tmp_path, **channel(1, "VDD_A", 5000, 100), **channel(2, "VDD_B", 5000, 200))
    total, reason = total_of(find_rails(System(tmp_path)))
    assert total is None
    assert reason is not None and "it has VDD_A, VDD_B" in reason and "VDD_IN" in reason


def test_half_of_a_sum_is_no_total(tmp_path: Path) -> None:
    chip(tmp_path, **channel(1, "VDD_GPU_SOC", 5000, 100), **channel(2, "VDD_CPU_CV", 5000, 200))
    assert total_of(find_rails(System(tmp_path)))[0] is None


def test_dram_of_agx_orin_is_not_counted_twice() -> None:
    rails = find_rails(System(TREES / "agx-orin"))
    total, _ = total_of(rails)
    assert "VDDQ_VDD2_1V8AO" in {rail.label for rail in rails}
    assert total is not None and "VDDQ_VDD2_1V8AO" not in {rail.label for rail in total.rails}


def thor(root: Path) -> None:
    tree = root / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "compatible").write_text("nvidia,p3834-0008\0nvidia,tegra264\0")


def test_an_ina238_gives_its_own_power(tmp_path: Path) -> None:
    thor(tmp_path)
    chip(tmp_path, name="ina238", power1_input=28_500_000, in1_input=20000, curr1_input=1)
    (rail,) = find_rails(System(tmp_path))
    assert rail.label == "VIN"
    assert rail.watts(System(tmp_path)) == pytest.approx(28.5)


def test_averaging_time_is_in_seconds(tmp_path: Path) -> None:
    chip(tmp_path, **channel(1, "VDD_IN", 5000, 100), update_interval=140)
    (rail,) = find_rails(System(tmp_path))
    assert rail.averaging_s == pytest.approx(0.14)


def test_a_rail_that_vanishes_is_an_os_error(tmp_path: Path) -> None:
    folder = chip(tmp_path, **channel(1, "VDD_IN", 5000, 100))
    (rail,) = find_rails(System(tmp_path))
    assert rail.watts(System(tmp_path)) == pytest.approx(0.5)
    (folder / "curr1_input").unlink()
    with pytest.raises(OSError, match="curr1_input"):
        rail.watts(System(tmp_path))


def test_an_unlabelled_ina238_is_the_input_of_thor_only(tmp_path: Path) -> None:
    chip(tmp_path, name="ina238", address="1-0044", power1_input=1_500_000)
    total, reason = total_of(find_rails(System(tmp_path)))
    assert total is None and reason is not None and "ina238 1-0044" in reason


def test_a_further_ina238_does_not_replace_the_rails_of_agx_orin(
    copied: Callable[[str], System],
) -> None:
    system = copied("agx-orin")
    before, _ = total_of(find_rails(system))
    chip(system.root, name="ina238", address="9-0044", power1_input=1_500_000)
    assert total_of(find_rails(system))[0] == before


def test_of_two_unlabelled_ina238_none_is_the_input(tmp_path: Path) -> None:
    thor(tmp_path)
    for address in ("1-0044", "1-0045"):
        chip(tmp_path, name="ina238", address=address, power1_input=1_500_000)
    total, reason = total_of(find_rails(System(tmp_path)))
    assert total is None and reason is not None and "ina238 1-0044, ina238 1-0045" in reason


def test_two_rails_of_one_name_are_no_total(tmp_path: Path) -> None:
    for address in ("1-0040", "1-0041"):
        chip(tmp_path, address=address, **channel(1, "VDD_IN", 5000, 100))
    total, reason = total_of(find_rails(System(tmp_path)))
    assert total is None and reason is not None and "two rails are called VDD_IN" in reason
