"""Times of the nodes of a file in ONNX Runtime, from the trace that it writes.

On a GPU a node's time there is that of starting its kernels: they run later. So the profile is
taken in a process of its own in which each start waits for its kernel (CUDA_LAUNCH_BLOCKING,
which CUDA reads once per process).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from oat_edge.errors import InputError, OatEdgeError
from oat_edge.runtime.child import ChildFailedError, call_child
from oat_edge.runtime.ort_session import SessionConfig, error_line, load_library, open_session
from oat_edge.runtime.runner import Float32, LayerTime

SUFFIX = "_kernel_time"
US_PER_MS = 1e3
BLOCKING = {"CUDA_LAUNCH_BLOCKING": "1"}


def profile(config: SessionConfig, feeds: dict[str, Float32], *, runs: int) -> list[LayerTime]:
    """Median time of each node over `runs` requests after a first one, as they run."""
    config = replace(config, cuda_graph=False)  # a replayed graph has no nodes
    if config.device == "cpu":
        return profile_here(config, feeds, runs=runs)
    return profile_in_child(config, feeds, runs=runs)


def profile_here(config: SessionConfig, feeds: dict[str, Float32], *, runs: int) -> list[LayerTime]:
    """In this process: right where a node is done when its call returns."""
    ort = load_library(config.device)
    with TemporaryDirectory(prefix="oat-edge-") as folder:
        try:
            session = open_session(ort, config, trace=Path(folder) / "trace")
            for _ in range(runs + 1):
                session.run(("logits",), feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except OatEdgeError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no public base class
            text = f"{config.path} has no times of layers ({error_line(error)})"
            raise InputError(text) from error
    return layer_times(events, runs=runs)


def profile_in_child(
    config: SessionConfig, feeds: dict[str, Float32], *, runs: int
) -> list[LayerTime]:
    """In a process in which kernels are waited for."""
    with TemporaryDirectory(prefix="oat-edge-") as folder:
        file = Path(folder) / "feeds.npz"
        np.savez(file, **feeds)  # type: ignore[arg-type]
        values = {**dataclasses.asdict(config), "path": str(config.path)}
        request = {"config": values, "feeds": str(file), "runs": runs}
        try:
            found = call_child(f"{__name__}:child", request, environment=BLOCKING)
        except ChildFailedError as error:
            raise InputError(f"{config.path} has no times of layers: {error}") from error
    return [LayerTime(**layer) for layer in found]


def child(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The child's side of `profile_in_child`."""
    path = Path(request["config"].pop("path"))
    config = SessionConfig(path=path, **request["config"])
    with np.load(request["feeds"]) as file:
        feeds = {name: file[name] for name in file.files}
    layers = profile_here(config, feeds, runs=request["runs"])
    return [dataclasses.asdict(layer) for layer in layers]


def layer_times(events: list[dict[str, Any]], *, runs: int) -> list[LayerTime]:
    """Nodes of a trace of runs + 1 requests, in the order of the first; its times do not count.

    One request that the machine held up would double the mean of a node: it is the median.
    """
    nodes: dict[int, list[dict[str, Any]]] = {}
    for event in sorted(events, key=_start):
        if event.get("cat") == "Node" and event["name"].endswith(SUFFIX):
            nodes.setdefault(int(event["args"]["node_index"]), []).append(event)
    layers = []
    for index, found in nodes.items():
        kind = found[0]["args"]["op_name"]
        name = found[0]["name"].removesuffix(SUFFIX) or f"{kind} {index}"
        # A node inside a loop has several events per request.
        by_request = np.array_split([float(event["dur"]) for event in found], runs + 1)[1:]
        us = float(np.median([part.sum() for part in by_request]))
        layers.append(LayerTime(name=name, kind=kind, ms=us / US_PER_MS))
    return layers


def _start(event: dict[str, Any]) -> float:
    return float(event.get("ts", 0))
