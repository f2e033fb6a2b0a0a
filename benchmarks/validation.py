"""Is a validation faster whose batches go on from one λ to the next?

Standard and robust accuracy of one width at six λ, PGD-7 on 256 images, as training validates.
Batches of 256 are one λ after the other; larger ones hold several. Accuracies are compared.

    python -m benchmarks.validation [--arch wrn-16-1] [--device cuda] [--batches 64,256,1536]
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch

from benchmarks.common import console, interleaved, ratio, save, small_image_spec
from benchmarks.inference import quartiles, randomised
from oat_edge.attacks.pgd import training_step_size
from oat_edge.memory import keep_freed_memory
from oat_edge.nn.fold import fold
from oat_edge.nn.zoo import build_network
from oat_edge.train.validate import validate

NUM_IMAGES = 256  # that training attacks by default
EPS, STEPS = 8 / 255, 7


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="wrn-16-1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="64,500,1536")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    sizes = sorted({NUM_IMAGES, *(int(size) for size in arguments.batches.split(","))})
    spec = small_image_spec(arguments.arch)
    network = randomised(build_network(spec)).to(arguments.device)
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_IMAGES, *spec.image_shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (NUM_IMAGES,), generator=generator)
    grids: dict[str, Any] = {}

    def run(size: int) -> None:
        grids[str(size)] = validate(
            {1.0: fold(network, 1.0)},
            images.to(arguments.device),
            labels.to(arguments.device),
            eps=EPS,
            attack_steps=STEPS,
            attack_alpha=training_step_size(EPS, STEPS),
            num_attacked=NUM_IMAGES,
            seed=0,
            batch_size=size,
        )

    samples = interleaved(
        {str(size): partial(run, size) for size in sizes}, rounds=arguments.rounds
    )
    one_by_one = str(NUM_IMAGES)
    gains = {name: ratio(samples, one_by_one, name, calls=1) for name in samples}
    console.print(
        f"{arguments.arch}, {arguments.device}, {arguments.threads} thread(s): one λ at a time "
        f"(batch {NUM_IMAGES}) {statistics.median(samples[one_by_one]) / 1e3:.2f} s",
        markup=False,
    )
    for name in samples:
        apart = max(
            max(abs(a.standard - b.standard), abs(a.robust - b.robust))
            for a, b in zip(grids[name], grids[one_by_one], strict=True)
        )
        gain = gains[name]
        console.print(
            f"  batch {name}: {gain['ratio']:.2f}x (per round {quartiles(gain)}); accuracies apart "
            f"by {100 * apart:.1f} points at most",
            markup=False,
        )
    save(
        f"validation-{arguments.arch}-{arguments.device}-threads{arguments.threads}",
        {"arguments": vars(arguments), "gains": gains, "samples_ms": samples},
        device=arguments.device,
    )


if __name__ == "__main__":
    main()
