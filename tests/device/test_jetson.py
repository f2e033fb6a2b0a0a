"""Every fact of every tree, every fact missing in turn, and damaged files."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from oat_edge.device.jetpack import jetpack_of, software
from oat_edge.device.jetson import (
    Fan,
    GpuClocksMhz,
    Jetson,
    PowerMode,
    board_name,
    detect,
    gpu_devfreq,
)
from oat_edge.device.system import System

JETSONS = ("orin-nano", "orin-nx", "agx-orin", "agx-thor")


GOVERNORS = {"cpu": "schedutil", "gpu": "nvhost_podgov"}


CV_OFF = "temperatures_c: cv0-thermal, cv1-thermal, cv2-thermal: not readable"


def temperatures(**zones):
    return {f"{name}-thermal": value for name, value in zones.items()}


EXPECTED = {
    "orin-nano": Jetson(
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        soc="tegra234",
        l4t="36.4.7",
        jetpack="6.2.x",
        cuda="12.6.68",
        tensorrt="10.3.0.30",
        power_mode=PowerMode(id=2, name="MAXN_SUPER"),
        clocks_locked=False,
        gpu_clocks_mhz=GpuClocksMhz(min=306, now=306, max=1020),
        governors=GOVERNORS,
        fan=Fan(percent=30.2, profile="quiet"),
        temperatures_c=temperatures(
            cpu=47.187, gpu=46.25, soc0=46.468, soc1=47.562, soc2=46.093, tj=47.562
        ),
        throttle_counts={"oc1": 0, "oc2": 0, "oc3": 2},
        warnings=(),
    ),
    "orin-nx": Jetson(
        model="NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        soc="tegra234",
        l4t="36.4.0",
        jetpack="6.1",
        cuda="12.6.68",
        tensorrt="10.3.0.30",
        power_mode=PowerMode(id=0, name="MAXN"),
        clocks_locked=True,
        gpu_clocks_mhz=GpuClocksMhz(min=918, now=918, max=918),
        governors=GOVERNORS,
        fan=Fan(percent=100, profile="cool"),
        temperatures_c=temperatures(
            cpu=52.406, gpu=51.375, soc0=50.812, soc1=51.781, soc2=50.718, tj=52.406
        ),
        throttle_counts={"oc1": 0, "oc2": 0, "oc3": 0},
        warnings=(),
    ),
    "agx-orin": Jetson(
        model="NVIDIA Jetson AGX Orin Developer Kit",
        soc="tegra234",
        l4t="36.4.3",
        jetpack="6.2.x",
        cuda="12.6.68",
        tensorrt="10.3.0.30",
        power_mode=PowerMode(id=0, name="MAXN"),
        clocks_locked=False,
        gpu_clocks_mhz=GpuClocksMhz(min=306, now=306, max=1300.5),
        governors=GOVERNORS,
        fan=Fan(percent=0, profile="quiet"),
        temperatures_c=temperatures(
            cpu=41.968, gpu=37.656, soc0=38.343, soc1=38.75, soc2=38.281, tj=41.968,
            tboard=33.5, tdiode=35.25,
        ),
        throttle_counts={"oc1": 0, "oc2": 0, "oc3": 0},
        warnings=(),
    ),
    "agx-thor": Jetson(
        model="NVIDIA Jetson AGX Thor Developer Kit",
        soc="tegra264",
        l4t="39.2.0",
        jetpack="7.2",
        cuda="13.2.0",
        tensorrt="10.16.2.10",
        power_mode=PowerMode(id=1, name="120W"),
        clocks_locked=False,
        gpu_clocks_mhz=GpuClocksMhz(min=315, now=315, max=1575),
        governors=GOVERNORS,
        fan=Fan(percent=29.8, profile="quiet"),
        temperatures_c=temperatures(cpu=53.7, tj=55.1, soc012=55.1, soc345=53.7),
        throttle_counts={"oc1": 0, "oc2": 0, "oc3": 0},
        warnings=(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("tree", JETSONS)
def test_every_fact(tree, recorded):
    found = detect(recorded(tree))
    assert dataclasses.replace(found, warnings=()) == EXPECTED[tree]
    gpu_off = "temperatures_c: gpu-thermal: not readable"
    fan, zones = found.warnings
    assert fan.startswith("fan.profile: the default of etc/nvfancontrol.conf")
    assert zones.startswith(gpu_off if tree == "agx-thor" else CV_OFF)


def test_another_board_is_no_jetson_but_has_its_name(recorded, tmp_path):
    pi = recorded("raspberry-pi")
    assert detect(pi) is None and board_name(pi) == "Raspberry Pi 5 Model B Rev 1.0"
    assert detect(System(tmp_path)) is None and board_name(System(tmp_path)) is None


def test_the_gpus_clock_is_found_among_other_clocks(recorded):
    assert gpu_devfreq(recorded("orin-nano")) == "sys/class/devfreq/17000000.gpu"
    assert gpu_devfreq(recorded("agx-thor")) == "sys/class/devfreq/gpu-gpc-0"
    assert gpu_devfreq(recorded("raspberry-pi")) is None


def remove(system, *patterns):
    found = [name for pattern in patterns for name in system.glob(pattern)]
    assert found, "nothing to remove: the test says nothing"
    for name in found:
        path = system.root / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


MISSING = {
    "soc": ["proc/device-tree/compatible"],
    "l4t": ["etc/nv_tegra_release", "commands/dpkg-query --show nvidia-l4t-core"],
    "cuda": ["usr/local/cuda"],
    "tensorrt": ["commands/dpkg-query --show libnvinfer*"],
    "power_mode": ["commands/nvpmodel -q", "var/lib/nvpmodel"],
    "gpu_clocks_mhz": ["sys/class/devfreq"],
    "governors": ["sys/class/devfreq", "sys/devices/system/cpu"],
    "fan": ["sys/class/hwmon/hwmon*/pwm1", "sys/class/hwmon/hwmon*/name"],
    "temperatures_c": ["sys/class/thermal"],
    "throttle_counts": ["sys/class/hwmon/hwmon*/oc*_event_cnt"],
}


@pytest.mark.parametrize("tree", JETSONS)
@pytest.mark.parametrize("fact", MISSING)
def test_a_fact_that_is_missing_is_none_and_named(fact, tree, copied):
    system = copied(tree)
    remove(system, *MISSING[fact])
    found = detect(system)
    assert getattr(found, fact) is None
    assert any(text.startswith((f"{fact}:", f"{fact}.")) for text in found.warnings)
    gone = {fact, "warnings"}
    gone |= {"jetpack"} if fact == "l4t" else set()
    if "sys/class/devfreq" in MISSING[fact]:
        gone |= {"clocks_locked", "gpu_clocks_mhz", "governors"}
    for field in dataclasses.fields(Jetson):
        if field.name not in gone:
            assert getattr(found, field.name) == getattr(EXPECTED[tree], field.name)


@pytest.mark.parametrize("name", ["min", "cur", "max"])
def test_a_clock_without_one_of_its_files(name, copied):
    system = copied("agx-thor")
    remove(system, f"sys/class/devfreq/gpu-gpc-0/{name}_freq")
    found = detect(system)
    assert found.gpu_clocks_mhz is None
    assert any(
        text.startswith("gpu_clocks_mhz:") and f"{name}_freq" in text for text in found.warnings
    )


def test_locked_needs_both_the_gpu_and_the_cpu(copied):
    system = copied("orin-nx")
    assert detect(system).clocks_locked is True
    clock = system.root / "sys/class/devfreq/17000000.gpu/min_freq"
    clock.write_text("306000000\n")
    assert detect(system).clocks_locked is False
    clock.unlink()
    found = detect(system)
    assert found.clocks_locked is None
    assert any(text.startswith("clocks_locked:") and "GPU" in text for text in found.warnings)
    # One that is free settles it, whatever the other is.
    limit = system.root / "sys/devices/system/cpu/cpu3/cpufreq/scaling_min_freq"
    limit.write_text("115200\n")
    assert detect(system).clocks_locked is False


def test_the_power_mode_is_found_without_the_command(copied):
    system = copied("orin-nano")
    remove(system, "commands/nvpmodel -q")
    assert detect(system).power_mode == PowerMode(id=2, name="MAXN_SUPER")
    (system.root / "var/lib/nvpmodel/status").write_text("pmode:0001 fmode:quiet")
    assert detect(system).power_mode == PowerMode(id=1, name="25W")
    (system.root / "var/lib/nvpmodel/status").write_text("pmode:0009")
    found = detect(system)
    assert found.power_mode == PowerMode(id=9, name=None)
    assert any(text.startswith("power_mode.name:") for text in found.warnings)


def test_other_sources_of_the_versions(copied):
    system = copied("orin-nano")
    remove(system, "etc/nv_tegra_release", "usr/local/cuda")
    for version in ("11.4", "12.6", "9.9"):
        (system.root / f"usr/local/cuda-{version}").mkdir()
    found = detect(system)
    assert (found.l4t, found.jetpack, found.cuda) == ("36.4.7", "6.2.x", "12.6")


@pytest.mark.parametrize("pwm", ["-1", "256", "nan", "fast", ""])
def test_a_fan_outside_its_range_has_no_percentage(pwm, copied):
    system = copied("orin-nano")
    (system.root / "sys/class/hwmon/hwmon2/pwm1").write_text(pwm)
    found = detect(system)
    assert found.fan == Fan(percent=None, profile="quiet")
    assert any(text.startswith("fan.percent:") for text in found.warnings)


def test_the_running_fan_profile_comes_before_the_default(copied):
    system = copied("orin-nano")
    said = "FAN1:FAN_PROFILE:cool\nFAN1:FAN_GOVERNOR:pid\n"
    (system.root / "commands/nvfancontrol -q").write_text(said)
    found = detect(system)
    assert found.fan.profile == "cool"
    assert not any(text.startswith("fan.profile") for text in found.warnings)


def test_a_container_hides_the_device_tree(copied):
    system = copied("agx-orin")
    remove(system, "proc/device-tree")
    # The kernel's name and NVIDIA's file are left.
    found = detect(system)
    assert (found.model, found.soc, found.l4t) == (None, None, "36.4.3")
    assert {"model", "soc"} <= {text.partition(":")[0] for text in found.warnings}
    (system.root / "sys/devices/soc0").mkdir()
    (system.root / "sys/devices/soc0/machine").write_text("NVIDIA Jetson AGX Orin Developer Kit\n")
    remove(system, "commands/uname -r", "etc/nv_tegra_release")
    assert detect(system).model == "NVIDIA Jetson AGX Orin Developer Kit"


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("35.1.0", "5.0.x"), ("35.2.1", "5.1.x"), ("35.6.0", "5.1.x"), ("36.2.0", "6.0 DP"),
        ("36.3.0", "6.0"), ("36.4.0", "6.1"), ("36.4", "6.1"), ("36.4.3", "6.2.x"),
        ("36.4.7", "6.2.x"), ("36.5.0", "6.2.x"), ("38.2.0", "7.0"), ("38.2.1", "7.0"),
        ("38.4.0", "7.1"), ("39.0.0", "7.2 EA"), ("39.1.0", "7.2 EA"), ("39.2.0", "7.2"),
        ("39.1", "7.2 EA"), ("39.2", "7.2"), ("39.2.1", "7.2.x"),
        # Older or newer than what is known.
        ("32.7.3", None), ("36.1.0", None), ("37.1.0", None), ("38.1.0", None), ("39.3.0", None),
        ("40.0.0", None),
    ],
)  # fmt: skip
def test_jetpack_by_l4t(l4t, jetpack):
    assert jetpack_of(l4t) == jetpack


def test_an_unknown_l4t_has_no_jetpack_and_says_so(copied):
    system = copied("agx-thor")
    release = system.root / "etc/nv_tegra_release"
    release.write_text(release.read_text().replace("R39 ", "R45 "))
    found = detect(system)
    assert found.l4t == "45.2.0" and found.jetpack is None
    assert any(text.startswith("jetpack: none is known for L4T 45.2.0") for text in found.warnings)


def test_the_environment_overrules_on_this_machine_only(recorded, monkeypatch):
    monkeypatch.setenv("L4T_VERSION", "38.4.0")
    monkeypatch.setenv("JETPACK_VERSION", "7.1.1")
    here = software(System())
    assert (here.l4t, here.jetpack) == ("38.4.0", "7.1.1")
    assert {"l4t: as L4T_VERSION says", "jetpack: as JETPACK_VERSION says"} <= {*here.warnings}
    assert detect(recorded("orin-nano")).l4t == "36.4.7"
    monkeypatch.delenv("JETPACK_VERSION")
    assert software(System()).jetpack == "7.1"
    monkeypatch.setenv("L4T_VERSION", "r38; rm")
    here = software(System())
    assert here.l4t is None and any("L4T_VERSION is 'r38; rm'" in text for text in here.warnings)
