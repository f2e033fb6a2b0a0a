"""One bench as it was asked for: what the command line makes, here or on another machine."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oat_edge.bench.cells import Cell, plan, seconds
from oat_edge.bench.config import BenchConfig
from oat_edge.bench.inputs import check_device, check_lambdas, files_to_measure, fit_batches
from oat_edge.bench.key import asked_key, with_threads
from oat_edge.bench.latency import Progress
from oat_edge.bench.report import Report, save_report
from oat_edge.bench.results import Results
from oat_edge.bench.run import bench_bundle
from oat_edge.bench.side_by_side import LATENCY, measured, rounds_of
from oat_edge.bundle import Bundle
from oat_edge.dataclass_json import from_json
from oat_edge.device.control import held, restore_leftover
from oat_edge.device.one_bench import one_bench_at_a_time
from oat_edge.device.system import System
from oat_edge.errors import InputError
from oat_edge.operating_point import parse_list
from oat_edge.runtime.artifacts import choose_widths
from oat_edge.runtime.engines import Say, silent

REPORT, RESULTS = "report.json", "results.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRequest:
    """What to measure of a bundle; which one is said apart, it may lie elsewhere."""

    config: BenchConfig
    width: str = "all"
    """ "0.5,1.0" or "all"."""
    lam: str = "knots"
    """ "0,0.3,1" or "knots": λ that get a row."""
    batches_named: bool = True
    """False: batches that engines do not take are moved to the nearest that they do."""
    resume: bool = False
    """Do not repeat cells that results.jsonl holds."""
    lock_clocks: bool = False
    """Hold the clocks fixed while measuring; restored afterwards, however that ends."""
    power_mode: str | None = None
    """Of a Jetson: measure in this mode (name or id); restored afterwards."""
    sysroot: str | None = None
    """Describe a recorded tree instead of this machine; the report says so."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> BenchRequest:
        """Read what `to_json` gave; `InputError` otherwise."""
        if not isinstance(value, dict) or not isinstance(value.get("config"), dict):
            raise InputError("bench request is no object with a config: ask again")
        config = from_json(BenchConfig, value["config"], "bench config")
        return from_json(cls, {**value, "config": config}, "bench request")

    @property
    def system(self) -> System:
        """The machine that is described."""
        return System() if self.sysroot is None else System(Path(self.sysroot))


@dataclass(frozen=True, slots=True)
class Planned:
    """One cell of a bench to come."""

    cell: Cell
    seconds: float
    """About how long it takes, as far as that is known beforehand."""
    done: bool
    """An unfinished bench has measured it: --resume does not repeat it."""
    turns: int = 0
    """Of a latency cell, the turns that it has measured; they are not repeated either."""


def run_request(
    request: BenchRequest,
    bundle: Bundle,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
    say: Say = silent,
) -> Report:
    """Measure, and write report.json and what belongs to it into `folder`.

    folder: None is the bundle's own. Raises what `bench_bundle` and `held` do, and `InputError`
    if the folder cannot be written, before anything is measured.
    """
    folder = folder or bundle.path
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} cannot be written, report.json goes there: copy the bundle")
    system, config = request.system, request.config
    check_device(config.device, on_gpu=config.on_gpu, system=system)
    config, widths = _choose(request, bundle, say)
    # Alone first: another bench is neither to see settings change, nor to be described by them.
    with one_bench_at_a_time(say):
        restore_leftover(system, say)
        with held(
            system,
            lock_clocks=request.lock_clocks,
            power_mode=request.power_mode,
            on_gpu=config.on_gpu,
            say=say,
        ) as settings:
            report, samples = bench_bundle(
                bundle,
                config,
                widths=widths,
                lambdas=_lambdas(request, bundle),
                results=folder / RESULTS,
                resume=request.resume,
                system=system,
                held=settings,
                progress=progress,
                say=say,
            )
    return save_report(report, samples, folder / REPORT)


def plan_request(
    request: BenchRequest, bundle: Bundle, *, folder: Path | None = None, say: Say = silent
) -> tuple[Planned, ...]:
    """The cells that `run_request` would measure; nothing is opened, no device is needed.

    Raises `InputError` for what cannot be resumed with these settings.
    """
    config, widths = _choose(request, bundle, say)
    check_lambdas(bundle, _lambdas(request, bundle))
    config, lambdas = with_threads(config), _lambdas(request, bundle)
    artifacts = files_to_measure(bundle, widths, config)
    cells = plan(artifacts, config, with_packs=bool(bundle.of_format("attacks")))
    results = None
    if request.resume:
        key = asked_key(bundle, artifacts, config, lambdas)
        results = Results.peek((folder or bundle.path) / RESULTS, key)

    def planned(cell: Cell) -> Planned:
        about_s = seconds(cell, config)
        if results is None:
            return Planned(cell, about_s, False)
        turns = len(rounds_of(results, *cell.where)) if cell.kind == LATENCY else 0
        return Planned(cell, about_s, measured(results, cell, config), turns)

    return tuple(map(planned, cells))


def _choose(
    request: BenchRequest, bundle: Bundle, say: Say
) -> tuple[BenchConfig, tuple[float, ...]]:
    """Settings and widths that fit the files of the bundle; what is left out or moved is said."""
    config = request.config
    widths, left_out = choose_widths(
        bundle,
        request.width,
        device=config.runner_device,
        formats=config.formats,
        precisions=config.precisions,
    )
    if left_out:
        say(left_out_text(left_out, config.runner_device))
    if not request.batches_named:
        config, told = fit_batches(bundle, widths, config)
        if told is not None:
            say(told)
    return config, widths


def _lambdas(request: BenchRequest, bundle: Bundle) -> tuple[float, ...]:
    if request.lam.strip() == "knots":
        return bundle.spec.lambdas
    return parse_list(request.lam, "lambda")


def left_out_text(widths: tuple[float, ...], device: str) -> str:
    """Widths of a bundle that have nothing for a device, in words."""
    names = ", ".join(f"{width:g}" for width in widths)
    why = " (fp16 and engines are for GPUs)" if device == "cpu" else ""
    return f"left out: width {names}, of which the bundle has nothing for {device}{why}"
