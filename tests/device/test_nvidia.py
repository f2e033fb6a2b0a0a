from __future__ import annotations

import sys
from types import SimpleNamespace

import pynvml
import pytest

from oat_edge.bench import schema
from oat_edge.device.nvidia import (
    THROTTLE_REASONS,
    GpuFacts,
    detect,
    first_visible,
    nvidia_driver,
    reasons,
)
from oat_edge.device.system import System
from tests.gpus import on_gpu, without_gpu

UUID = "GPU-6d1ac4ee-0000-1111-2222-333344445555"


def test_the_bits_are_nvmls():
    named = {
        getattr(pynvml, name)
        for name in dir(pynvml)
        if name.startswith("nvmlClocksThrottleReason") and not name.endswith(("All", "None"))
    }
    assert named <= set(THROTTLE_REASONS)
    assert pynvml.nvmlClocksThrottleReasonHwThermalSlowdown == 0x40
    assert reasons(0x40) == ("hardware thermal slowdown",)


def test_a_mask_is_decoded_without_loss():
    assert reasons(0) == ()
    assert reasons(0x1 | 0x4) == ("idle", "software power cap")
    assert reasons(0x20 | 0x10000) == ("software thermal slowdown", "unknown (0x10000)")
    assert len({*THROTTLE_REASONS.values()}) == len(THROTTLE_REASONS)


@pytest.mark.parametrize(
    ("visible", "first"),
    [
        (None, "0"), ("0", "0"), ("2,0", "2"), (" 1 , 3", "1"), (UUID, UUID),
        (f"{UUID},0", UUID), ("GPU-6d1a", "GPU-6d1a"), ("MIG-GPU-6d1a/1/0", "MIG-GPU-6d1a/1/0"),
        ("", None), ("-1", None), ("-1,0", None), ("NoDevFiles", None), ("all", None),
    ],
)  # fmt: skip
def test_the_first_visible_gpu(visible, first):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert first_visible(environ) == first


def test_the_driver_of_a_tree(tmp_path):
    assert nvidia_driver(System(tmp_path)) is None
    folder = tmp_path / "proc/driver/nvidia"
    folder.mkdir(parents=True)
    for text, version in (
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release", "540.4.0"),
        ("NVRM version: damaged", None),
    ):
        (folder / "version").write_text(text)
        assert nvidia_driver(System(tmp_path)) == version


def test_a_recorded_tree_is_never_asked(recorded, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace())  # any call would fail
    facts, reason = detect(recorded("orin-nano"))
    assert facts is None and "recorded" in reason


@without_gpu
def test_without_a_driver_the_reason_is_nvmls():
    facts, reason = detect(System())
    assert facts is None and "NVML does not start (" in reason


def test_without_the_package_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    facts, reason = detect(System())
    assert facts is None and "pynvml" in reason and "pip install" in reason


class Library:
    """NVML as far as it is asked here: its own constants and errors, answers from a table."""

    def __init__(self, answers: dict[str, object], count: int = 1) -> None:
        self.answers, self.count, self.asked, self.open = answers, count, None, False

    def __getattr__(self, name: str) -> object:
        if not name.startswith(("nvmlDevice", "nvmlSystem")):
            return getattr(pynvml, name)

        def call(*arguments: object) -> object:
            if name not in self.answers:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return self.answers[name]

        return call

    def nvmlInit(self) -> None:
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= self.count:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        self.asked = index
        return index

    def nvmlDeviceGetUUID(self, device: int) -> str:
        return f"GPU-{device}aaa-bbbb"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)


ANSWERS = {
    "nvmlDeviceGetName": b"NVIDIA Something",
    "nvmlSystemGetDriverVersion": "570.1",
    "nvmlDeviceGetClockInfo": 1200,
    "nvmlDeviceGetMaxClockInfo": 2400,
    "nvmlDeviceGetTemperature": 51,
    "nvmlDeviceGetEnforcedPowerLimit": 450_000,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0x44,
    "nvmlDeviceGetCudaComputeCapability": (8, 9),
    "nvmlDeviceGetPersistenceMode": 1,
}


@pytest.fixture
def library(monkeypatch):
    def install(answers=ANSWERS, visible=None, **more):
        made = Library(dict(answers), **more)
        monkeypatch.setitem(sys.modules, "pynvml", made)
        for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
            monkeypatch.delenv(name, raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return made

    return install


def test_all_values_in_their_units(library):
    made = library()
    facts, reason = detect(System())
    assert reason is None and not made.open
    assert facts == GpuFacts(
        name="NVIDIA Something",
        driver="570.1",
        compute_capability="8.9",
        clock_mhz=1200.0,
        clock_max_mhz=2400.0,
        memory_clock_mhz=1200.0,
        memory_clock_max_mhz=2400.0,
        power_limit_w=450.0,
        temperature_c=51.0,
        throttle_reasons=("software power cap", "hardware thermal slowdown"),
        persistence=True,
    )
    assert schema.load(GpuFacts, schema.dump(facts), "gpu") == facts


@pytest.mark.parametrize("missing", sorted(ANSWERS))
def test_one_value_that_is_not_told_is_none_and_named(missing, library):
    library({name: value for name, value in ANSWERS.items() if name != missing})
    facts, _ = detect(System())
    gone = {name for name in GpuFacts.__slots__ if getattr(facts, name) is None}
    assert gone and {text.split(": ")[0] for text in facts.warnings} == {f"gpu.{n}" for n in gone}
    assert all("Not Supported" in text for text in facts.warnings)


def test_a_library_that_starts_and_tells_nothing_is_no_source(library):
    """As on a Jetson, where the name is told and nothing else."""
    made = library({"nvmlDeviceGetName": "Orin (nvgpu)"})
    facts, reason = detect(System())
    assert facts is None and "Not Supported" in reason and not made.open


@pytest.mark.parametrize(("visible", "asked"), [("1", 1), ("GPU-2a", 2), ("GPU-0aaa-bbbb,1", 0)])
def test_the_gpu_that_cuda_shows_is_asked(visible, asked, library):
    made = library(visible=visible, count=3)
    assert detect(System())[0] is not None and made.asked == asked


@pytest.mark.parametrize("visible", ["7", "GPU-ffff", ""])
def test_a_gpu_that_is_not_there_is_named(visible, library):
    made = library(visible=visible, count=3)
    facts, reason = detect(System())
    assert facts is None and f"'{visible}'" in reason and "CUDA_VISIBLE_DEVICES" in reason
    assert not made.open


def test_several_gpus_may_be_counted_in_another_order(library, monkeypatch):
    library(count=2)
    facts, _ = detect(System())
    assert any("CUDA_DEVICE_ORDER" in text for text in facts.warnings)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert detect(System())[0].warnings == ()


@on_gpu
def test_the_gpu_of_this_machine():
    facts, reason = detect(System())
    assert reason is None
    assert facts.name and facts.driver and 0 < facts.clock_mhz <= facts.clock_max_mhz
    assert 0 < facts.temperature_c < 120 and facts.power_limit_w > 0
