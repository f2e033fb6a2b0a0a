"""The table of docs/results.md from an evaluation report.

python -m benchmarks.eval_table runs/latest/eval.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from oat_edge.evaluation.plots import TITLES
from oat_edge.evaluation.report import EvalReport


def main() -> None:
    """Print Markdown: accuracies in percent, the worst case with its 95 % interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    report = EvalReport.load(parser.parse_args().report)
    attacks = [name for name in TITLES if all(name in row.robust_accuracy for row in report.rows)]
    names = ["width", "λ", "SA", *[TITLES[name] for name in attacks], "worst (95 %)"]
    print("|", " | ".join(names), "|")
    print("|" + "---|" * len(names))
    for row in report.rows:
        low, high = row.robust_accuracy_interval["worst"]
        shares = [row.standard_accuracy, *[row.robust_accuracy[name] for name in attacks]]
        cells = [f"{row.width:g}", f"{row.lam:g}", *[f"{100 * share:g}" for share in shares]]
        worst = f"{100 * row.robust_accuracy['worst']:g} ({100 * low:.0f}–{100 * high:.0f})"
        print("|", " | ".join([*cells, worst]), "|")


if __name__ == "__main__":
    main()
