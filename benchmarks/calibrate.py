"""How long `oat-edge calibrate` takes to answer from a long report.

A real report's rows are multiplied to `--rows` by made-up files: copies of the rows under other
names, each with figures that differ a little, so that none is the same as another. The command is
run as a user runs it, in a process of its own, with the bundle out of reach (λ goes by the knots).

    python -m benchmarks.calibrate --report bundles/latest/report.json [--rows 1000] [--runs 7]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import console, save
from oat_edge.bench.report import Report, Row
from oat_edge.files import write_json


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("bundles/latest/report.json"))
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    report = longer(Report.load(arguments.report), arguments.rows)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        write_json(path, report.to_json())
        for _ in range(arguments.runs):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "oat_edge", "calibrate", path, "--min-robust", "0.1"],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds.append(time.perf_counter() - start)
    low, high = min(seconds), max(seconds)
    console.print(
        f"calibrate, {len(report.rows)} rows: {statistics.median(seconds):.2f} s "
        f"({low:.2f}–{high:.2f}, {len(seconds)} runs)"
    )
    save("calibrate", {"rows": len(report.rows), "seconds": seconds})


def longer(report: Report, num_rows: int) -> Report:
    """The report with `num_rows` rows; more than there are by copies that differ a little."""
    generator = np.random.default_rng(0)
    rows: list[Row] = []
    while len(rows) < num_rows:
        copy = len(rows) // len(report.rows)
        source = report.rows[len(rows) % len(report.rows)]
        rows.append(_other(source, copy, float(generator.uniform(0.9, 1.1))))
    return dataclasses.replace(report, rows=tuple(rows))


def _other(row: Row, copy: int, factor: float) -> Row:
    """The same row of another file, its latency `factor` times as long."""
    if not copy or row.latency_ms is None:
        return row
    scaled = {
        name: getattr(row.latency_ms, name) * factor
        for name in ("mean", "p50", "p90", "p95", "p99", "min", "max")
        if getattr(row.latency_ms, name) is not None
    }
    return dataclasses.replace(
        row,
        artifact=f"copy{copy}-{row.artifact}",
        latency_ms=dataclasses.replace(row.latency_ms, **scaled),
    )


if __name__ == "__main__":
    main()
