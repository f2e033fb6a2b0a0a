"""What runs in a cell's own process. `oat_edge.runtime.worker` starts it and asks.

A question is an object whose "do" names what is to be done; the answer is plain JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from oat_edge.bench import schema
from oat_edge.bench.accuracy import measure_outcomes
from oat_edge.bench.config import BenchConfig
from oat_edge.bench.inputs import load_packs
from oat_edge.bench.latency import measure_part, warm_up
from oat_edge.bench.profile import profile_artifact
from oat_edge.bench.records import outcome_to_json, part_to_json, warm_up_to_json
from oat_edge.bench.requests import measurable_of, open_runner_of, throughput_ips
from oat_edge.bundle import Artifact, Bundle
from oat_edge.dataclass_json import from_json
from oat_edge.runtime.engines import obtain_engine
from oat_edge.runtime.runner import Float32
from oat_edge.runtime.worker import Ask, Event

Verbs = dict[str, Callable[[dict[str, Any], Event], Any]]


@contextmanager
def network(request: dict[str, Any], _: Event) -> Iterator[Ask]:
    """One file at one batch: "facts", "warm_up", "part" and "throughput"."""
    bundle, artifact, config = _opened(request)
    (batch,) = config.batches
    image = _images(request)[batch]
    with open_runner_of(bundle, artifact, config, threads=config.threads) as runner:
        measurable = measurable_of(artifact, runner, image)

        def facts(*_: Any) -> dict[str, Any]:
            return {
                "backend": runner.backend,
                "precision": runner.precision,
                "versions": runner.versions,
                "remarks": runner.remarks,
                "nodes": getattr(runner, "node_counts", {}),
                "num_lambdas": measurable.num_lambdas,
            }

        def warm(*_: Any) -> dict[str, Any]:
            return warm_up_to_json(warm_up(measurable, config))

        def part(question: dict[str, Any], _: Event) -> dict[str, Any]:
            return part_to_json(measure_part(measurable, question["first"], config))

        def throughput(*_: Any) -> dict[str, Any]:
            ips, remarks = throughput_ips(bundle, artifact, {batch: image}, config)
            return {"ips": ips[batch], "remarks": remarks}

        yield _asking({"facts": facts, "warm_up": warm, "part": part, "throughput": throughput})


@contextmanager
def accuracy(request: dict[str, Any], _: Event) -> Iterator[Ask]:
    """One file: "outcomes" at a list of λ; events are its progress."""
    bundle, artifact, config = _opened(request)
    with open_runner_of(bundle, artifact, config, threads=config.threads) as runner:

        def outcomes(question: dict[str, Any], event: Event) -> list[Any]:
            def progress(done_s: float, total_s: float, label: str) -> None:
                event([done_s, total_s, label])

            found = measure_outcomes(
                runner,
                load_packs(bundle, config.attacks),
                artifact.width,
                question["lambdas"],
                config,
                progress,
                label=question["label"],
            )
            return [[lam, outcome_to_json(outcome)] for lam, outcome in found.items()]

        yield _asking({"outcomes": outcomes})


@contextmanager
def layers(request: dict[str, Any], _: Event) -> Iterator[Ask]:
    """One file: "profiles"."""
    bundle, artifact, config = _opened(request)
    with open_runner_of(bundle, artifact, config, threads=config.threads) as runner:

        def profiles(*_: Any) -> Any:
            found = profile_artifact(artifact, runner, _images(request), runs=config.profile_runs)
            return schema.dump(found)

        yield _asking({"profiles": profiles})


@contextmanager
def engine(request: dict[str, Any], _: Event) -> Iterator[Ask]:
    """One engine: "build" it if there is none for this machine; events are what is being done."""
    bundle, artifact, config = _opened(request)

    def build(_: dict[str, Any], event: Event) -> str:
        def say(text: str, share: float = 0.0) -> None:
            event([text, share])

        return str(obtain_engine(bundle, artifact, device=config.runner_device, say=say).path)

    yield _asking({"build": build})


def _opened(request: dict[str, Any]) -> tuple[Bundle, Artifact, BenchConfig]:
    bundle = Bundle.open(request["bundle"])
    artifact = next(one for one in bundle.artifacts if one.file == request["file"])
    return bundle, artifact, from_json(BenchConfig, request["config"], "bench config")


def _images(request: dict[str, Any]) -> dict[int, Float32]:
    """By batch."""
    with np.load(request["images"], allow_pickle=False) as file:
        return {int(batch): file[batch] for batch in file.files}


def _asking(verbs: Verbs) -> Ask:
    return lambda question, event: verbs[question["do"]](question, event)
