"""What a bench measures and for how long. Validation only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from oat_edge.dataclass_json import check_range
from oat_edge.errors import InputError

DeviceName = Literal["cpu", "cuda", "jetson"]
Processor = Literal["cpu", "gpu"]
MAX_BATCH = 4096
# Requests in flight in throughput mode on a GPU: one computes while the other is copied.
GPU_WORKERS = 2
# How robust accuracy is measured: replay of the bundle's packs, Square against the engine itself.
PACK, SQUARE = "pack", "square"
ATTACKS = (PACK, SQUARE)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """One bench (DESIGN, section 7). The limits of a measurement are minimums and all hold."""

    device: DeviceName = "cpu"
    """What to measure on; "jetson" is the whole board, of which `processor` runs the network."""
    processor: Processor | None = None
    """Of a Jetson: its GPU (None) or its CPU; the others have one that counts."""
    batches: tuple[int, ...] = (1, 16)
    """Images per request, growing; 1 is what a camera needs, 16 shows what batching gains."""
    formats: tuple[str, ...] | None = None
    """Formats to measure ("onnx", "trt", "trt-rtx"); None is what suits the device."""
    precisions: tuple[str, ...] | None = None
    """Precisions to measure ("fp32", "fp16", "int8"); None is what suits the device."""
    cuda_graph: bool = True
    """On a GPU, replay one CUDA graph per batch size."""
    profile: bool = False
    """Also take the times of layers, after all else."""
    profile_runs: int = 50
    """Requests behind a layer's median time."""
    min_seconds: float = 10.0
    """Measured time per (artifact, batch) in latency mode."""
    min_iterations: int = 1000
    """Requests per (artifact, batch) in latency mode; p99 needs 662 of them."""
    rounds: int = 10
    """Parts that a measurement is cut into, so that configurations take turns."""
    warmup_min_s: float = 0.5
    """Shortest warm-up; `windows` windows share it."""
    warmup_cap_s: float = 10.0
    """Longest warm-up; a row that reaches it carries a warning."""
    windows: int = 3
    """Consecutive windows whose medians must agree for the warm-up to end."""
    agree: float = 0.02
    """Largest relative difference between those medians."""
    rewarm_s: float = 0.1
    """Unrecorded time after each switch between configurations."""
    threads: int | None = None
    """CPU threads of one request in latency mode; None is one per core."""
    throughput_seconds: float = 3.0
    """Measured time per (artifact, batch) in throughput mode."""
    throughput_workers: int | None = None
    """Requests in flight in throughput mode, on one thread each; None is one per core, and on a
    GPU GPU_WORKERS."""
    accuracy_batch: int = 64
    """Images per request when accuracy is measured; no effect on any time."""
    attacks: tuple[str, ...] = (PACK,)
    """What robust accuracy is measured with, of ATTACKS."""
    transfer: bool = True
    """Replay packs at every operating point, not only at the one they were crafted for."""
    queries: int = 1000
    """Square: images like it that the engine is shown per image and operating point."""
    idle_seconds: float = 2.0
    """How long the machine's power at rest is looked at first, where it can be read."""
    monitor_hz: float = 20.0
    """Readings of power, clocks and temperatures per second."""
    timeout_s: float = 600.0
    """A cell whose process says nothing for so long is ended; its rows have failed."""
    seed: int = 0
    """Seeds made-up images, permutation tests and Square."""

    def __post_init__(self) -> None:
        if self.device not in get_args(DeviceName):
            choices = ", ".join(get_args(DeviceName))
            raise InputError(f"device is '{self.device}': expected one of {choices}")
        if self.processor not in (None, *get_args(Processor)):
            raise InputError(f"processor is '{self.processor}': expected cpu or gpu")
        if self.processor is not None and self.processor != self._usual and self.device != "jetson":
            raise InputError(
                f"processor is {self.processor} and device {self.device}: of a Jetson either can "
                "be chosen, of others --device says it"
            )
        if not self.batches or min(self.batches) < 1 or self.batches != _growing(self.batches):
            raise InputError(f"batches are {self.batches}: expected growing numbers of 1 or more")
        if max(self.batches) > MAX_BATCH:
            raise InputError(f"batch is {max(self.batches)}: expected {MAX_BATCH} or less")
        spans = ("min_seconds", "warmup_min_s", "rewarm_s", "throughput_seconds", "idle_seconds")
        for name in spans:
            check_range(name, getattr(self, name), 0.0, 86400.0)
        check_range("monitor_hz", self.monitor_hz, 1.0, 1000.0)
        check_range("timeout_s", self.timeout_s, 0.01, 86400.0)
        least = {"min_iterations": 1, "rounds": 3, "windows": 2, "profile_runs": 1}
        for name, low in least.items():
            _at_least(name, getattr(self, name), low)
        for name in ("threads", "throughput_workers"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        _at_least("accuracy_batch", self.accuracy_batch, 1)
        _at_least("seed", self.seed, 0)
        _at_least("queries", self.queries, 1)
        self._check_attacks()
        check_range("warmup_cap_s", self.warmup_cap_s, self.warmup_min_s, 86400.0)
        check_range("agree", self.agree, 0.0, 1.0)

    def _check_attacks(self) -> None:
        for name in self.attacks:
            if name not in ATTACKS:
                raise InputError(
                    f"attack is '{name}': expected one or more of pack,square "
                    "(pack: whatever `export --attack` made)"
                )
        if not self.attacks or len(set(self.attacks)) < len(self.attacks):
            got = ",".join(self.attacks)
            raise InputError(f"attacks are '{got}': expected one or more of pack,square")

    @classmethod
    def quick(cls, **changes: Any) -> BenchConfig:
        """A look rather than a result: 1 s and 100 requests, for which p95 and p99 are null."""
        short: dict[str, Any] = {
            "min_seconds": 1.0,
            "min_iterations": 100,
            "rounds": 4,
            "warmup_cap_s": 3.0,
            "throughput_seconds": 1.0,
            "idle_seconds": 1.0,
        }
        return cls(**{**short, **changes})

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU runs the network."""
        return (self.processor or self._usual) == "gpu"

    @property
    def runner_device(self) -> Literal["cpu", "cuda"]:
        """What runners call it."""
        return "cuda" if self.on_gpu else "cpu"

    @property
    def _usual(self) -> Processor:
        return "cpu" if self.device == "cpu" else "gpu"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def _growing(values: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(values)))


def _at_least(name: str, value: int, low: int) -> None:
    if not value >= low:
        raise InputError(f"{name} is {value}: expected {low} or more")
