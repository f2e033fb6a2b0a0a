"""What the two processes of test_distributed.py do; each returns plain values."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oat_edge.config import TrainConfig
from oat_edge.data.dataset import Dataset, Split
from oat_edge.nn.conditional_norm import ConditionalBatchNorm2d
from oat_edge.nn.global_norm import batch_norm
from oat_edge.train.distributed import Ranks, joined
from oat_edge.train.loop import Trainer
from oat_edge.train.step import OATSStep, StepOptions
from tests.conftest import make_network, tiny_config

BATCHES = {
    "mixed": [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5],
    "one clean": [5, 1, 2, 0, 3, 5],
    "one robust": [0, 0, 0, 4, 0, 0],
    "all clean": [0, 0, 0, 0],
    "twice": [1, 2, 3, 4, 5, 5],
}
CASES = [
    ("mixed", 1), ("mixed", 2), ("one clean", 1), ("one robust", 1), ("all clean", 2), ("twice", 2),
]  # fmt: skip
# Every image trains at λ = 0 too, with this weight.
ALL_CLEAN = {"twice": 0.25}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(size: int, folder: Path) -> tuple[list[dict[str, Any]], list[int | None]]:
    """What `everything` gives in each of `size` gloo processes, and their exit codes.

    At the end the last process is killed in the middle of a run, `folder`/killed.
    """
    context, port = multiprocessing.get_context("spawn"), free_port()
    processes = [context.Process(target=_one, args=(r, size, port, folder)) for r in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(150)
    results = [torch.load(folder / f"result-{rank}.pt") for rank in range(size)]
    return results, [process.exitcode for process in processes]


def _one(rank: int, size: int, port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)

    def last_words(message: str | None) -> None:
        (folder / f"words-{rank}").write_text(message or "")

    with joined("cpu", last_words=last_words) as ranks:
        torch.save(everything(ranks, folder), folder / f"result-{rank}.pt")
        calls = iter(range(100))

        def killed() -> bool:
            if rank == size - 1 and next(calls) == 2:  # the first step of the second epoch is done
                os.kill(os.getpid(), signal.SIGKILL)
            return False

        trainer = Trainer(killed_config(), made_data(), folder / "killed", ranks=ranks)
        trainer.train(should_stop=killed)


def killed_config() -> TrainConfig:
    """Of the run that is killed."""
    return tiny_config(widths=(1.0,), val_every=3, epochs=3)


def made_data() -> Dataset:
    """Noise in the shape of digits, two batches."""
    random = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = random.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
        return Split(images=images, labels=random.integers(0, 10, count))

    return Dataset(
        name="made",
        class_names=tuple("0123456789"),
        train=split(120),
        val=split(32),
        test=split(2),
        record={"splits": "made"},
    )


def everything(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """All that two processes are asked for: starting them takes longer than the work."""
    steps = {
        f"{name}, {accumulate}": steps_in_double(ranks, name, accumulate)
        for name, accumulate in CASES
    }
    return {
        "steps": steps,
        "norm": half_precision_norm(ranks),
        "run": whole_run(ranks, folder / f"run-{ranks.size}"),
        "bytes": ranks.from_first(lambda: b"of %d" % ranks.rank),
        "any": [ranks.any(False), ranks.any(ranks.rank == ranks.size - 1)],
    }


def steps_in_double(
    ranks: Ranks, name: str, accumulate: int
) -> tuple[list[float], dict[str, torch.Tensor], torch.Tensor]:
    """Losses of two steps, the network after them, and the state of the random stream."""
    index, network = BATCHES[name], make_network(widths=(0.5, 1.0)).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    settings: dict[str, Any] = {"eps": 8 / 255, "attack_steps": 2}
    options = StepOptions(accumulate=accumulate, all_clean=ALL_CLEAN.get(name))
    step = OATSStep(network, optimizer, options=options, ranks=ranks, **settings)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(2):
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
    config = tiny_config(widths=(1.0,), epochs=1, accumulate=2, lr=1e-4)
    trainer = Trainer(config, made_data(), run_dir, ranks=ranks)
    grid = trainer.train()
    return [point.to_json() for point in grid], trainer.network.state_dict()
