"""Toy networks under attack, and how the tests of `eval RUN` evaluate them."""

from __future__ import annotations

from oat_edge.evaluation.config import EvalConfig
from oat_edge.evaluation.network import CELLS, evaluate_network
from tests.toy import LAMBDAS, WIDTHS, toy_checkpoint, toy_dataset

FAST = ("pgd20", "square")  # three parts: these and the checks


def evaluate(folder, *, sha256="a" * 64, widths=WIDTHS, lambdas=LAMBDAS, progress=None, **changes):
    fresh, dataset = changes.pop("fresh", False), changes.pop("dataset", None)
    settings = {"attacks": FAST, "num_samples": 12, "num_queries": 30, **changes}
    return evaluate_network(
        toy_checkpoint(sha256),
        EvalConfig(**settings),
        dataset=dataset or toy_dataset(),
        widths=widths,
        lambdas=lambdas,
        folder=folder,
        fresh=fresh,
        progress=progress or (lambda done, total, label: None),
    )


def figures(evaluation):
    """Everything of a report but what time it took."""
    value = evaluation.report.to_json()
    del value["environment"]  # has the clock
    value["settings"].pop("cells")
    for row in value["rows"]:
        assert all(seconds >= 0 for seconds in row["seconds"].values())
        row["seconds"] = sorted(row["seconds"])
    return value


def cells(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / CELLS).glob("*/*.npz")}
