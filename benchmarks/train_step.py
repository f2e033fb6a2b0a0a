"""What does folding gain in training?  One OATS step against a straightforward one.

Same mathematics, float32, same batches and random numbers: losses are compared as the steps run.
The straightforward step attacks the unfolded network, FiLM's MLPs run on every sample in every
attack step, layers slice the full weights, memory is laid out as torch does by default.

    python -m benchmarks.train_step [--arch wrn-16-1] [--batch 64] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

from benchmarks.common import console, interleaved, ratio, save
from benchmarks.inference import quartiles
from benchmarks.straightforward import StraightforwardNetwork, straightforward_step
from oat_edge.config import NetworkSpec
from oat_edge.nn.zoo import build_network
from oat_edge.train.sampling import sample_knots
from oat_edge.train.step import OATSStep

EPS, STEPS = 8 / 255, 7


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="wrn-16-1")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    candidates, losses = make_candidates(arguments.arch, arguments.batch)
    samples = interleaved(candidates, rounds=arguments.rounds)
    worst = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    assert worst < 2e-2, f"the two steps train differently: losses differ by {worst}"
    gain = ratio(samples, "straightforward", "folded", calls=1)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    console.print(
        f"OATS step, {arguments.arch}, batch {arguments.batch}, {arguments.threads} thread(s): "
        f"straightforward {medians['straightforward']:.0f} ms, folded {medians['folded']:.0f} ms: "
        f"{gain['ratio']:.2f}x (per round {quartiles(gain)}); losses agree to {worst:.1e}",
        markup=False,
    )
    save(
        f"train_step-{arguments.arch}",
        {"arguments": vars(arguments), "gain": gain, "median_ms": medians, "samples_ms": samples},
    )


def make_candidates(arch: str, batch: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Both steps as calls, each on its own copy of one network, and the losses they note."""
    spec = NetworkSpec(arch=arch, class_names=tuple("0123456789"), image_shape=(3, 32, 32), eps=EPS)
    network = build_network(spec)
    plain = StraightforwardNetwork(network)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = OATSStep(network, sgd(network), eps=EPS, attack_steps=STEPS)
    plain_optimizer = sgd(plain)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, *spec.image_shape, generator=generator)
    labels = torch.randint(0, 10, (batch,), generator=generator)
    images_last = images.contiguous(memory_format=torch.channels_last)
    knots = torch.tensor(spec.lambdas)
    losses: dict[str, list[float]] = {"folded": [], "straightforward": []}

    def folded_step() -> None:
        seed = len(losses["folded"])
        index = sample_knots(batch, len(knots), None, torch.Generator().manual_seed(seed))
        loss = step(images_last, labels, index, torch.Generator().manual_seed(seed))
        losses["folded"].append(loss.item())

    def plain_step() -> None:
        seed = len(losses["straightforward"])
        index = sample_knots(batch, len(knots), None, torch.Generator().manual_seed(seed))
        loss = straightforward_step(
            plain,
            plain_optimizer,
            images,
            labels,
            knots[index],
            torch.Generator().manual_seed(seed),
            eps=EPS,
            attack_steps=STEPS,
        )
        losses["straightforward"].append(loss.item())

    return {"folded": folded_step, "straightforward": plain_step}, losses


def sgd(module: torch.nn.Module) -> torch.optim.Optimizer:
    """The paper's optimiser at a rate that keeps both copies together."""
    return torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


if __name__ == "__main__":
    main()
