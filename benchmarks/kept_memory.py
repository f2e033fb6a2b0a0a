"""What is it worth to keep freed memory (`oat_edge.memory`)?  PGD with and without, in turns.

    python -m benchmarks.kept_memory [--threads 1] [--batch 250] [--rounds 5]

Each measurement is a process of its own: what malloc is told cannot be taken back.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.common import console, save, small_image_spec
from oat_edge.attacks.pgd import pgd, uniform_noise
from oat_edge.memory import keep_freed_memory
from oat_edge.nn.fold import fold
from oat_edge.nn.zoo import build_network

# Steps of PGD: some seconds on one core.
NETWORKS = {"wrn-10-1": 10, "wrn-16-1": 6, "wrn-16-4": 1}
KEPT, DEFAULT = "kept", "glibc's default"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=250, help="that of `oat-edge eval`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        arch, kept = json.loads(arguments.child)
        print(gradients_per_s(arch, arguments.threads, arguments.batch, kept=kept))
        return
    found = {}
    for arch in NETWORKS:
        speeds: dict[str, list[float]] = {KEPT: [], DEFAULT: []}
        for turn in range(arguments.rounds):
            for kept in (turn % 2 == 0, turn % 2 == 1):
                speeds[KEPT if kept else DEFAULT].append(_child(arch, kept, arguments))
        gains = [a / b for a, b in zip(*speeds.values(), strict=True)]
        found[arch] = {"gradients_per_s": speeds, "gains": gains}
        medians = {name: statistics.median(values) for name, values in speeds.items()}
        console.print(
            f"{arch}: {medians[DEFAULT]:.0f} images/s there and back by default, kept "
            f"{medians[KEPT]:.0f}: {statistics.median(gains):.2f}x "
            f"({min(gains):.2f}–{max(gains):.2f})",
            markup=False,
        )
    settings = {name: value for name, value in vars(arguments).items() if name != "child"}
    save(f"kept-memory-threads{arguments.threads}", {"arguments": settings, "found": found})


def _child(arch: str, kept: bool, arguments: argparse.Namespace) -> float:
    command = [
        sys.executable, "-m", "benchmarks.kept_memory", "--child", json.dumps([arch, kept]),
        "--threads", str(arguments.threads), "--batch", str(arguments.batch),
    ]  # fmt: skip
    root = Path(__file__).parents[1]
    return float(subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE).stdout)


def gradients_per_s(arch: str, threads: int, batch: int, *, kept: bool) -> float:
    """Images per second and step of PGD on the folded network, a first call apart."""
    if kept:
        assert keep_freed_memory(), "this is not glibc"
    torch.set_num_threads(threads)
    folded = fold(build_network(small_image_spec(arch)), 1.0)
    images = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(batch, dtype=torch.int64)
    steps = NETWORKS[arch]
    for _ in range(2):
        start = time.perf_counter()
        pgd(
            folded.at(torch.tensor([0.3])), images, labels,
            eps=8 / 255, steps=steps, alpha=2 / 255,
            noise=uniform_noise(images, 8 / 255, torch.Generator()),
        )  # fmt: skip
        seconds = time.perf_counter() - start
    return batch * steps / seconds


if __name__ == "__main__":
    main()
