"""Bench a whole bundle on this machine's CPU or GPU."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from oat_edge.bench import schema
from oat_edge.bench.accuracy import attack_settings
from oat_edge.bench.assembly import (
    meanings,
    measured_of,
    sessions_told,
    state_in,
    transfer_of,
    with_engine_versions,
)
from oat_edge.bench.cells import Opener
from oat_edge.bench.config import BenchConfig
from oat_edge.bench.environment import Environment, collect
from oat_edge.bench.inputs import (
    bench_images,
    check_device,
    check_lambdas,
    check_libraries,
    files_to_measure,
    load_packs,
)
from oat_edge.bench.key import asked_key, machine_key, with_threads
from oat_edge.bench.latency import LatencySamples, Progress
from oat_edge.bench.measuring import Measuring
from oat_edge.bench.report import NOT_SAVED, BundleId, Report
from oat_edge.bench.requests import num_workers
from oat_edge.bench.results import Results
from oat_edge.bench.rows import make_rows
from oat_edge.bundle import Bundle
from oat_edge.device.monitor import Monitor
from oat_edge.device.state import MonitorFacts
from oat_edge.device.system import System
from oat_edge.errors import InputError
from oat_edge.evaluation.precisions import precision_drops
from oat_edge.runtime.engines import Say, silent

NOT_WATCHED = "a recorded tree is described, and the machine that ran was not watched"


def bench_bundle(
    bundle: Bundle,
    config: BenchConfig,
    *,
    widths: Sequence[float],
    lambdas: Sequence[float],
    results: Path | None = None,
    resume: bool = False,
    system: System | None = None,
    held: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    say: Say = silent,
) -> tuple[Report, tuple[LatencySamples, ...]]:
    """Measure the files of these widths: latency, accuracy, throughput, memory, power and state.

    lambdas: a row each, for files that take λ as an input (latency is measured over all knots
    whatever is asked for); a file with a pinned λ gets its one row. results: where finished cells
    are kept (results.jsonl); None keeps them only while this runs. resume: do not repeat what is
    there. system: the machine; a recorded one is only described. held: settings of the machine
    that were set for this bench (`oat_edge.device.control.held`). say: told of engines that are
    built first, and of what has to be tried again. Returns the report and the raw latency samples,
    for `save_report`.
    Raises `DependencyError` (device), `InputError` (bundle, widths, λ, batches, packs), and what
    opening a file raises; all of it before anything is measured. A cell that fails later has rows
    that say so; if all do, the first error is raised.
    """
    system = system or System()
    check_device(config.device, on_gpu=config.on_gpu, system=system)
    config = with_threads(config)
    check_lambdas(bundle, lambdas)
    artifacts = files_to_measure(bundle, widths, config)
    check_libraries(bundle, artifacts, device=config.runner_device)
    for artifact in artifacts:
        if not artifact.deferred:
            bundle.checked_path(artifact)
    packs = load_packs(bundle, config.attacks)
    images, image_source = bench_images(bundle, packs, config.batches, seed=config.seed)
    environment = collect(system=system, device=config.device)
    with (
        _scratch(images) as (scratch, images_file),
        Monitor(
            # What a recorded tree holds was not measured here: nothing is watched.
            System(scratch / "nothing") if system.recorded else system,
            on_gpu=config.on_gpu,
            rate_hz=config.monitor_hz,
        ) as monitor,
    ):
        key = {
            **asked_key(bundle, artifacts, config, lambdas),
            **machine_key(environment, monitor.facts(), held or {}),
        }
        file = results or scratch / "results.jsonl"
        if resume and not file.exists():
            say(f"nothing to resume in {file.parent}: measuring anew")
        session = {"environment": schema.dump(environment)}
        kept = Results.open(file, key, resume=resume, session=session)
        measuring = Measuring(
            bundle=bundle,
            artifacts=artifacts,
            packs=packs,
            lambdas=lambdas,
            config=config,
            opener=Opener(bundle, config, images_file),
            results=kept,
            monitor=monitor,
            progress=progress,
            say=say,
        )
        num_before = len(kept.sessions())
        measuring.run()
        watched = monitor.facts()
        if system.recorded:
            watched = dataclasses.replace(watched, reason=NOT_WATCHED)
        if len(kept.sessions()) > num_before:
            kept.add({"kind": "monitor", "facts": schema.dump(watched)})
    if (record := kept.last("monitor")) is not None:
        watched = schema.load(MonitorFacts, record["facts"], "monitor")
    runs = kept.sessions()
    if runs:
        environment = schema.load(Environment, runs[0]["environment"], "environment")
    measured = [measured_of(measuring, artifact) for artifact in artifacts]
    idle = state_in(kept.last("idle"))
    figures = [one.figures for one in measured]
    rows, flatness, cost = make_rows(figures, lambdas, bundle.spec.lambdas, config, watched, idle)
    transfer, transfer_artifacts, transfer_warnings = transfer_of(measured, config)
    report = Report(
        environment=with_engine_versions(environment, measured),
        settings={
            **config.to_json(),
            **meanings(config),
            "throughput_workers": num_workers(config),
            "widths": list(widths),
            "lambdas": list(lambdas),
            "lambda_knots": list(bundle.spec.lambdas),
            "images": image_source,
            "attacks": attack_settings(packs, config),
            "nodes": {one.figures.artifact.file: one.nodes for one in measured if one.nodes},
            "sessions": [one["timestamp_utc"] for one in runs],
            "held": dict(held or {}),
        },
        bundle=BundleId(run=bundle.run, checkpoint_sha256=bundle.checkpoint_sha256),
        rows=rows,
        lambda_cost=cost,
        lambda_flatness=flatness,
        samples_file=None,
        warnings=(
            NOT_SAVED,
            *(packs.warnings if packs else ()),
            *transfer_warnings,
            *(text for one in measured for text in one.warnings),
            *sessions_told(kept),
        ),
        transfer=transfer,
        profile=tuple(profile for one in measured for profile in one.profiles),
        transfer_artifacts=transfer_artifacts,
        monitor=watched,
        idle=idle,
        failures=measuring.failures,
        precisions=precision_drops(bundle, packs, [one.file_outcomes for one in measured]),
    )
    return report, tuple(one for figure in figures for one in figure.samples.values())


@contextmanager
def _scratch(images: Mapping[int, Any]) -> Iterator[tuple[Path, Path]]:
    """A folder of this bench's own, and in it the images that all cells are shown."""
    with ExitStack() as stack:
        try:
            made = tempfile.TemporaryDirectory(prefix="oat-edge-bench-")
            folder = Path(stack.enter_context(made))
            file = folder / "images.npz"
            np.savez(file, **{str(batch): array for batch, array in images.items()})
        except OSError as error:
            raise InputError(
                f"cannot write {tempfile.gettempdir()} ({error.strerror}): make room, or name "
                "another place with TMPDIR"
            ) from error
        yield folder, file
