"""What must be the same for the finished cells of an earlier run to count."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from oat_edge.bench import schema
from oat_edge.bench.config import BenchConfig
from oat_edge.bench.environment import Environment
from oat_edge.bench.throughput import available_cores
from oat_edge.bundle import Artifact, Bundle
from oat_edge.device.state import MonitorFacts

# What decides how long and how closely is looked, not what is found.
PATIENCE = ("timeout_s", "idle_seconds", "monitor_hz")


def with_threads(config: BenchConfig) -> BenchConfig:
    """Said, not left to the back end: a latency without its threads is no figure."""
    return dataclasses.replace(config, threads=config.threads or available_cores())


def asked_key(
    bundle: Bundle, artifacts: Sequence[Artifact], config: BenchConfig, lambdas: Sequence[float]
) -> dict[str, Any]:
    """What is asked for; no device is needed to know it."""
    settings = {name: v for name, v in config.to_json().items() if name not in PATIENCE}
    files = (*artifacts, *bundle.of_format("attacks"))
    value: dict[str, Any] = schema.dump(
        {
            "checkpoint": bundle.checkpoint_sha256,
            "files": {artifact.file: artifact.sha256 for artifact in files},
            "settings": settings,
            "lambdas": list(lambdas),
        }
    )
    return value


def machine_key(
    environment: Environment, monitor: MonitorFacts, held: Mapping[str, Any]
) -> dict[str, Any]:
    """What it is measured on, and in which state. Nothing that changes by itself."""
    jetson = environment.jetson
    board = None if jetson is None else {
        "l4t": jetson.l4t,
        "power_mode": jetson.power_mode,
        "clocks_locked": jetson.clocks_locked,
    }  # fmt: skip
    value: dict[str, Any] = schema.dump(
        {
            "device": environment.device,
            "driver": environment.driver,
            "libraries": environment.library_versions,
            "governor": environment.power_mode,
            "jetson": board,
            "held": dict(held.get("set", {})),
            "power": {"source": monitor.source, "scope": monitor.scope},
        }
    )
    return value
