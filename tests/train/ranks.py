"""What the two processes of test_distributed.py do; each returns plain values."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from oat_edge.data import load
from oat_edge.nn.conditional_norm import ConditionalBatchNorm2d
from oat_edge.nn.global_norm import batch_norm
from oat_edge.train.distributed import ALONE, Ranks, joined
from oat_edge.train.loop import Trainer
from oat_edge.train.step import OATSStep, StepOptions
from tests.conftest import make_network, tiny_config

BATCHES = {
    "mixed": [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5],
    "one clean": [5, 1, 2, 0, 3, 5],
    "one robust": [0, 0, 0, 4, 0, 0],
    "all clean": [0, 0, 0, 0],
    "all robust": [1, 5, 1, 5],
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(job: Callable[[Ranks, Path], Any], size: int, folder: Path) -> list[Any]:
    """The result of job(ranks, folder) in each of `size` gloo processes."""
    context = multiprocessing.get_context("spawn")
    results, port = context.SimpleQueue(), free_port()
    arguments = (job, size, port, folder, results)
    processes = [context.Process(target=_one, args=(rank, *arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * size
    found = dict(results.get() for _ in processes)
    return [torch.load(folder / found[rank], weights_only=False) for rank in range(size)]


def _one(
    rank: int,
    job: Callable[[Ranks, Path], Any],
    size: int,
    port: int,
    folder: Path,
    results: Any,
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with joined("cpu", last_words=print) as ranks:
        name = f"result-{rank}.pt"
        torch.save(job(ranks, folder), folder / name)
        results.put((rank, name))


def everything(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """All that two processes are asked for: starting them takes longer than the work."""
    steps = {
        f"{name}, {accumulate}": steps_in_double(ranks, index, accumulate)
        for name, index in BATCHES.items()
        for accumulate in (1, 2)
    }
    return {
        "steps": steps,
        "norm": half_precision_norm(ranks),
        "run": whole_run(ranks, folder / f"run-{ranks.size}"),
        "bytes": ranks.from_first(lambda: b"of %d" % ranks.rank),
        "any": [ranks.any(False), ranks.any(ranks.rank == ranks.size - 1)],
    }


def steps_in_double(
    ranks: Ranks, index: list[int], accumulate: int
) -> tuple[list[float], dict[str, torch.Tensor], torch.Tensor]:
    """Losses of three steps, the network after them, and the state of the random stream."""
    network = make_network().double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    settings: dict[str, Any] = {"eps": 8 / 255, "attack_steps": 2}
    options = StepOptions(accumulate=accumulate)
    step = OATSStep(network, optimizer, options=options, ranks=ranks, **settings)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(3):
        images = torch.rand(len(index), 1, 8, 8, generator=generator).double()
        labels = torch.randint(0, 10, (len(index),), generator=generator)
        losses.append(float(step(images, labels, torch.tensor(index), generator)))
    return losses, network.state_dict(), generator.get_state()


def half_precision_norm(ranks: Ranks) -> tuple[torch.Tensor, torch.Tensor]:
    """Running statistics after bfloat16 images far from zero, four on the first process only."""
    layer = next(m for m in make_network().modules() if isinstance(m, ConditionalBatchNorm2d))
    norm = layer.branch(adversarial=False, width_index=0)
    generator = torch.Generator().manual_seed(0)
    x = 100 + torch.randn(4, norm.num_features, 3, 3, generator=generator).bfloat16()
    own = x if ranks.first else x[:0]
    y = batch_norm(norm.train(), own, ranks.gather if ranks.size > 1 else None)
    assert y.dtype == own.dtype and y.shape == own.shape
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


def whole_run(ranks: Ranks, run_dir: Path) -> tuple[list[Any], dict[str, torch.Tensor]]:
    config = tiny_config(epochs=1, accumulate=2, lr=1e-4)
    trainer = Trainer(config, load("digits", train_samples=120), run_dir, ranks=ranks)
    grid = trainer.train()
    return [point.to_json() for point in grid], trainer.network.state_dict()


def alone(folder: Path) -> dict[str, Any]:
    """The same in this process."""
    return everything(ALONE, folder)
