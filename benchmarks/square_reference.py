"""Is the Square attack as strong as its authors'?  Robust accuracy of both at equal queries.

Both attack the same images, those that one folded network has right when clean, in PyTorch on
this CPU. The reference is the authors' code in AutoAttack (package pyautoattack, extra `attack`)
with its two schedules: of fixed query counts, as AutoAttack runs it, and rescaled to the number
of queries. Its squares never reach the last row and column; a third reference is the rescaled one
with that put right. Validation images follow where the test split is short.

    python -m benchmarks.square_reference --checkpoint RUN [--width 0.5] [--lambda 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from benchmarks.common import console, save
from oat_edge.attacks.square import square_attack
from oat_edge.cli.console import plain_table
from oat_edge.cli.export import load_test_data
from oat_edge.evaluation.accuracy import to_float
from oat_edge.evaluation.pack import Int64, UInt8
from oat_edge.nn.fold import PinnedNetwork, fold
from oat_edge.train.checkpoint import Checkpoint, load_checkpoint

OURS = "oat-edge"
FIXED, RESCALED, EVERYWHERE = "AutoAttack", "… rescaled", "… rescaled, every place"
CHUNK = 64  # images that pass the network at once: its features then stay in the cache


class EveryPlace(SquareAttack):  # type: ignore[misc]
    """The reference with its draw of positions made inclusive."""

    def random_int(self, low: int = 0, high: int = 1, shape: tuple[int, ...] = (1,)) -> Tensor:
        positions: Tensor = torch.randint(low, high + 1, shape)
        return positions


class Counted:
    """A network that counts the images it was shown."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.num_images = 0

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        self.num_images += len(image)
        return torch.cat([self.network(part) for part in torch.split(image, CHUNK)])


def main() -> None:
    """Attack, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/latest"))
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--lambda", dest="lam", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--queries", default="1000,5000")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    network = PinnedNetwork(fold(checkpoint.network, arguments.width), arguments.lam)
    images, labels = some_images(checkpoint, arguments.samples)
    clean = Counted(network)(torch.from_numpy(to_float(images))).argmax(dim=1).numpy() == labels
    data = checkpoint.info["train"]["data"]
    facts = {
        "data": data,
        "arch": checkpoint.spec.arch,
        "checkpoint_sha256": checkpoint.sha256,
        "width": arguments.width,
        "lambda": arguments.lam,
        "eps": checkpoint.spec.eps,
        "num_samples": len(labels),
        "standard_accuracy": float(clean.mean()),
    }
    rows = []
    for num_queries in map(int, arguments.queries.split(",")):
        for seed in range(arguments.seeds):
            for attack in (OURS, FIXED, RESCALED, EVERYWHERE):
                row = attacked(
                    attack, network, images[clean], labels[clean], checkpoint, num_queries, seed
                )
                row["robust_accuracy"] = row.pop("num_right") / len(labels)
                console.print(row, markup=False)
                rows.append(row)
        console.print(table(rows))
        save(f"square-reference-{data}", {**facts, "rows": rows})


def some_images(checkpoint: Checkpoint, samples: int) -> tuple[UInt8, Int64]:
    """The first test images, and validation images where these do not suffice."""
    data = load_test_data(checkpoint, data_dir=None, download=False)
    images = np.concatenate([data.test.images, data.val.images])[:samples]
    return images, np.concatenate([data.test.labels, data.val.labels])[:samples]


def attacked(
    attack: str,
    network: torch.nn.Module,
    images: UInt8,
    labels: Int64,
    checkpoint: Checkpoint,
    num_queries: int,
    seed: int,
) -> dict[str, Any]:
    """One run: how many images stay right, at what price."""
    counted = Counted(network)
    runs: dict[str, Callable[..., int]] = {
        OURS: ours,
        FIXED: partial(reference, SquareAttack, False),
        RESCALED: partial(reference, SquareAttack, True),
        EVERYWHERE: partial(reference, EveryPlace, True),
    }
    start = time.perf_counter()
    num_right = runs[attack](counted, images, labels, checkpoint.spec.eps, num_queries, seed)
    seconds = time.perf_counter() - start
    # The reference looks at every image before and after its search, and once more for us.
    searched = counted.num_images - (0 if attack == OURS else 3 * len(images))
    return {
        "attack": attack,
        "num_queries": num_queries,
        "seed": seed,
        "num_right": num_right,
        "mean_queries": searched / len(images),
        "seconds": seconds,
    }


def ours(
    network: Counted, images: UInt8, labels: Int64, eps: float, num_queries: int, seed: int
) -> int:
    """How many images our attack leaves right."""
    result = square_attack(
        lambda x: network(torch.from_numpy(x)).numpy(),
        images,
        labels,
        eps=eps,
        num_queries=num_queries,
        seed=seed,
    )
    return int(result.right.sum())


def reference(
    kind: type[SquareAttack],
    rescaled: bool,
    network: Counted,
    images: UInt8,
    labels: Int64,
    eps: float,
    num_queries: int,
    seed: int,
) -> int:
    """How many images the authors' attack leaves right."""
    # It does not count the query of the stripes.
    attack = kind(
        network,
        eps=eps,
        n_queries=num_queries - 1,
        seed=seed,
        resc_schedule=rescaled,
        device="cpu",
    )
    x, y = torch.from_numpy(to_float(images)), torch.from_numpy(labels)
    adversarial = attack.perturb(x, y)
    assert ((adversarial - x).abs() <= eps + 1e-6).all()
    return int((network(adversarial).argmax(dim=1) == y).sum())


def table(rows: list[dict[str, Any]]) -> Any:
    """Means over the seeds; RA also as their range, and as points above AutoAttack's."""
    columns = ["attack", "queries", "RA %", "seeds", "points", "mean queries", "s"]
    out = plain_table(None, columns)
    for num_queries in dict.fromkeys(row["num_queries"] for row in rows):
        means: dict[str, float] = {}
        for attack in (FIXED, RESCALED, EVERYWHERE, OURS):
            some = [r for r in rows if (r["attack"], r["num_queries"]) == (attack, num_queries)]
            shares = [100 * row["robust_accuracy"] for row in some]
            means[attack] = statistics.mean(shares)
            out.add_row(
                attack,
                str(num_queries),
                f"{means[attack]:.2f}",
                f"{min(shares):.1f} … {max(shares):.1f}",
                f"{means[attack] - means[FIXED]:+.2f}",
                f"{statistics.mean(row['mean_queries'] for row in some):.0f}",
                f"{statistics.mean(row['seconds'] for row in some):.1f}",
            )
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
