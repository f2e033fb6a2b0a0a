"""Do the checks tell masked gradients from honest ones?

One trained network, and the same network behind three classic masks: logits times 10^4 (the
cross-entropy saturates), pixels rounded to 16 levels (no gradient passes), and noise on the logits.
None of them makes the network any harder to fool for an attacker who knows. Prints the RA that
PGD-20 claims, the RA under Square, and what the checks say.

    python -m benchmarks.masked_gradients --checkpoint runs/latest
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.common import console, save
from oat_edge.attacks.masking import gradient_checks
from oat_edge.attacks.square import square_attack
from oat_edge.attacks.stages import run_stage, still_right
from oat_edge.cli.console import plain_table
from oat_edge.cli.export import load_test_data
from oat_edge.data import Split
from oat_edge.evaluation.checks import Check, check_randomised, check_square
from oat_edge.evaluation.pack import chosen_indices
from oat_edge.network_spec import NetworkSpec
from oat_edge.nn.fold import fold
from oat_edge.train.checkpoint import load_checkpoint

Net = Callable[[Tensor], Tensor]


def masks(net: Net) -> dict[str, Net]:
    """The honest network and its masked versions."""
    generator = torch.Generator().manual_seed(0)

    def noisy(x: Tensor) -> Tensor:
        logits = net(x)
        return logits + 0.5 * torch.randn(logits.shape, generator=generator)

    return {
        "honest": net,
        "logits x 1e4": lambda x: 1e4 * net(x),
        "input in 16 levels": lambda x: net((15 * x).round() / 15),
        "noise on the logits": noisy,
    }


def measure(net: Net, split: Split, spec: NetworkSpec, queries: int) -> dict[str, Any]:
    """RA under PGD-20 and Square, and every check."""
    x, y = torch.from_numpy(split.images).float() / 255, torch.from_numpy(split.labels)

    @torch.no_grad()
    def infer(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return net(torch.from_numpy(image)).numpy()

    clean = still_right(net, x, y).numpy()
    pgd = run_stage("pgd20", net, x, y, eps=spec.eps, seed=0, num_classes=spec.num_classes)
    square = clean.copy()
    square[clean] = square_attack(
        infer, split.images[clean], split.labels[clean], eps=spec.eps, num_queries=queries
    ).right
    white_box = clean & pgd.right.numpy()
    checks: list[Check] = [
        check_randomised(infer, split.images, split.labels),
        *gradient_checks(net, x, y, pgd.right, eps=spec.eps, seed=0),
        check_square("PGD-20", white_box, square, complete=False),
    ]
    return {
        "standard_accuracy": float(clean.mean()),
        "pgd20": float(white_box.mean()),
        "square": float(square.mean()),
        "checks": [dataclasses.asdict(check) for check in checks],
    }


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/latest"))
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--lambda", dest="lam", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--queries", type=int, default=1000)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    dataset = load_test_data(checkpoint, data_dir=None, download=False)
    split = dataset.test.take(chosen_indices(len(dataset.test), arguments.samples, seed=0))
    net = fold(checkpoint.network, arguments.width).at(torch.full((1,), arguments.lam))
    found = {
        name: measure(masked, split, checkpoint.spec, arguments.queries)
        for name, masked in masks(net).items()
    }
    columns = ["network", "SA", "PGD-20", "Square", "flagged by"]
    table = plain_table(f"{dataset.name}, width {arguments.width:g}, λ={arguments.lam:g}", columns)
    for name, one in found.items():
        shares = [f"{100 * one[key]:.1f}" for key in ("standard_accuracy", "pgd20", "square")]
        flagged = [check["name"] for check in one["checks"] if check["flagged"]]
        table.add_row(name, *shares, ", ".join(flagged) or "none")
    console.print(table)
    save(
        f"masked-gradients-{dataset.name}",
        {
            "settings": {
                **vars(arguments),
                "checkpoint": checkpoint.run,
                "eps": checkpoint.spec.eps,
            },
            "networks": found,
        },
    )


if __name__ == "__main__":
    main()
