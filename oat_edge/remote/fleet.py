"""A bench on several devices at once, and their reports as one."""

from __future__ import annotations

import csv
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oat_edge.bench import schema
from oat_edge.bench.report import Report, flat_row
from oat_edge.bench.request import BenchRequest
from oat_edge.bundle import Bundle
from oat_edge.errors import OatEdgeError
from oat_edge.files import atomic_path, write_json
from oat_edge.remote.bench import bench_there
from oat_edge.remote.client import PATIENCE_S, Session
from oat_edge.remote.devices import FLEET
from oat_edge.remote.ssh import StoppedError
from oat_edge.remote.targets import Target
from oat_edge.runtime.engines import Say, silent

SCHEMA = "oat-edge/fleet/1"
FLEET_FILE = f"report-{FLEET}.json"

FleetProgress = Callable[[str, float, float, str], None]
"""As `Progress`, with the target's name first."""


@dataclass(frozen=True, slots=True)
class TargetResult:
    """What came of one target: a report or an error."""

    target: Target
    report: Report | None
    error: Exception | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        error = None
        if self.error is not None:
            error = {
                "class": type(self.error).__name__,
                "exit_code": getattr(self.error, "exit_code", 1),
                "message": str(self.error),
            }
        return {
            "name": self.target.name,
            "host": str(self.target.host),
            "report": None if self.report is None else self.report.to_json(),
            "error": error,
        }


@dataclass(frozen=True, slots=True)
class FleetResult:
    """What came of all targets, in their order."""

    results: tuple[TargetResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values of schema oat-edge/fleet/1."""
        return {"schema": SCHEMA, "targets": [one.to_json() for one in self.results]}

    def save(self, folder: Path) -> Path | None:
        """Write report-fleet.json if there is more than one target; its path.

        None: it was not written. One that is there is not replaced by errors alone.
        """
        path = folder / FLEET_FILE
        failed = all(one.report is None for one in self.results)
        if len(self.results) < 2 or (failed and path.exists()):
            return None
        write_json(path, self.to_json())
        return path

    def write_csv(self, path: Path) -> None:
        """Write all rows, with the device's name before the columns of `bench --csv`."""
        lines = [
            {"device": one.target.name, **line}
            for one in self.results
            if one.report is not None
            for line in (flat_row(schema.dump(row)) for row in one.report.rows)
        ]
        columns = list(dict.fromkeys(["device", *(column for line in lines for column in line)]))
        with (
            atomic_path(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(lines)

    def check(self) -> None:
        """Raise the error of a target that failed: its own if it is the only one."""
        failed = [one for one in self.results if one.error is not None]
        if not failed:
            return
        first = failed[0].error
        assert first is not None
        bug = next((e for one in failed if not isinstance(e := one.error, OatEdgeError)), None)
        if bug is not None:
            raise bug  # with its traceback
        if len(self.results) == 1:
            raise first
        texts = "; ".join(f"{one.target.name}: {one.error}" for one in failed)
        raise type(first)(f"{len(failed)} of {len(self.results)} devices failed: {texts}")


def bench_on(
    targets: Sequence[Target],
    bundle: Bundle,
    request: BenchRequest,
    *,
    bootstrap: bool = False,
    progress: FleetProgress | None = None,
    say: Say = silent,
    patience_s: float = PATIENCE_S,
) -> FleetResult:
    """Measure on all targets at once; one that fails does not stop the others.

    Each report is saved as report-NAME.json beside the bundle's own, with its samples. progress
    and say are called one at a time. Ctrl-C stops the benches there, then raises
    `KeyboardInterrupt`; a second one leaves them running.
    """
    stopping, leaving, turn = threading.Event(), threading.Event(), threading.Lock()
    results: dict[int, TargetResult] = {}

    def work(index: int, target: Target) -> None:
        def say_one(text: str, share: float = 0.0) -> None:
            with turn:
                say(f"{target.name}: {text}", share)

        def progress_one(done_s: float, total_s: float, label: str) -> None:
            if progress is not None:
                with turn:
                    progress(target.name, done_s, total_s, label)

        session = Session(
            target.host,
            python=target.python,
            stopping=stopping,
            leaving=leaving,
            patience_s=patience_s,
            say=say_one,
        )
        try:
            report = bench_there(
                session,
                bundle,
                request_for(target, request),
                name=target.name,
                bootstrap=bootstrap,
                progress=progress_one,
                say=say_one,
            )
            results[index] = TargetResult(target, report, None)
        except StoppedError:
            results[index] = TargetResult(target, None, OatEdgeError("interrupted"))
        except Exception as error:
            results[index] = TargetResult(target, None, error)
            if len(targets) > 1:
                say_one(f"failed: {error}")
        finally:
            session.close()

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(targets)]
    for thread in threads:
        thread.start()
    try:
        _wait(threads)
    except KeyboardInterrupt:
        stopping.set()
        try:
            _wait(threads)
        except KeyboardInterrupt:
            leaving.set()
        raise KeyboardInterrupt from None
    return FleetResult(tuple(results[index] for index in range(len(targets))))


def request_for(target: Target, request: BenchRequest) -> BenchRequest:
    """The request for what a target is."""
    device: Any = target.device
    config = dataclasses.replace(request.config, device=device)
    return dataclasses.replace(request, config=config)


def _wait(threads: Sequence[threading.Thread]) -> None:
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.05)
