"""Reports with made-up figures of a bundle that is there."""

from __future__ import annotations

from oat_edge.bench.report import Report
from oat_edge.bundle import Bundle
from tests.bench.made_up import change, make_report


def report_of(bundle: Bundle, **options: object) -> Report:
    """`make_report`, its rows with the hashes of the bundle's files of the same names."""
    report = make_report(**options)
    for artifact in bundle.artifacts:
        report = change(
            report, lambda row, a=artifact: row.artifact == a.file, sha256=artifact.sha256
        )
    return report
