"""The processes of one training run: who takes what, and how their results meet.

Every process draws the random numbers of the whole batch and then keeps its own images, so a run
is the same on any number of processes, up to the order in which floats are added.

torch's DistributedDataParallel is not used. It sums gradients while *one* backward call runs; a
step of OATS has one for every pass at every width, their FiLM gradients meet in leaf tables first,
and batch norm needs its own exchange (`oat_edge.nn.global_norm`) in any case. One sum over all
gradients before the optimiser's step is right whatever the step does before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from oat_edge.errors import DependencyError, InputError
from oat_edge.train.watch import REMEDY, LostProcess, Watch

# Gradients are summed in buckets: one exchange each is fast, all at once would double the memory.
BUCKET_VALUES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of its run. Every method is called by all of them together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of its machine."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this process computes."""

    @property
    def first(self) -> bool:
        """Whether this process writes the files and shows progress."""
        return self.rank == 0

    def share_of(self, clean: Tensor) -> Tensor:
        """Which samples of a batch this process takes.

        clean: (N,) bool, λ = 0. Returns (N,) bool. The processes' clean samples differ by one at
        most, and so do the others, which are attacked and take several times as long: nobody waits.
        """
        order = torch.argsort(clean.to(torch.uint8), stable=True)
        mine = torch.zeros_like(clean)
        mine[order[self.rank :: self.size]] = True
        return mine

    def gather(self, tensor: Tensor) -> Tensor:
        """(P, …): the tensors of all processes, of one shape."""
        parts = tensor.new_empty((self.size, *tensor.shape))
        if self.size == 1:
            return parts.copy_(tensor.unsqueeze(0))
        with _connected():
            dist.all_gather(list(parts.unbind(0)), tensor.contiguous())
        return parts

    def sum_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same bits on all of them."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with _connected():
                dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.size == 1:
            return flag
        return bool(self.gather(torch.tensor([flag], device=self.device)).any())

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.any(False)

    def from_first(self, make: Callable[[], bytes]) -> bytes:
        """What `make` returns on the first process; the others do not call it."""
        if self.size == 1:
            return make()
        data = make() if self.first else b""
        length = int(self.gather(torch.tensor([len(data)], device=self.device))[0])
        content = torch.zeros(length, dtype=torch.uint8)
        if self.first and length:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        content = content.to(self.device)
        with _connected():
            dist.broadcast(content, src=0)
        return content.cpu().numpy().tobytes()

    def copy_first(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by the first process's."""
        if self.size == 1:
            return
        for tensor in tensors:
            content = tensor.detach().contiguous()
            with _connected():
                dist.broadcast(content, src=0)
            tensor.detach().copy_(content)

    def check_same(self, what: str, value: Any) -> None:
        """Raise `InputError` unless `value` (JSON) is that of the first process."""
        text = json.dumps(value, sort_keys=True).encode()
        if self.from_first(lambda: text) != text:
            raise InputError(
                f"process {self.rank} of {self.size} has other {what} than process 0: give every "
                "machine the same command and the same data"
            )

    @contextmanager
    def machine_by_machine(self) -> Iterator[None]:
        """Let one process of each machine go through first, as when it fetches files."""
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()


ALONE = Ranks()


def check_device(device: str) -> None:
    """Raise `InputError` unless training can run there."""
    if device not in ("cpu", "cuda"):
        raise InputError(f"device is '{device}': expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no CUDA device: use --device cpu")


@contextmanager
def joined(device: str, *, last_words: Callable[[str | None], None]) -> Iterator[Ranks]:
    """The processes that torchrun (or whatever sets its variables) has started as one run.

    device: cpu, or cuda, of which each process takes the GPU of its LOCAL_RANK. An exception in
    one process ends all of them with its exit code, and only one of them tells the user: the
    others are ended by their watch, which calls last_words(message or None) before. Without
    torchrun: one process, and nothing else happens.
    """
    size, rank, local_rank = (
        _whole_number(name, default)
        for name, default in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )
    try:
        check_device(device)
    except InputError as error:
        if local_rank:  # the first process of the machine says it
            raise SystemExit(error.exit_code) from None
        raise
    place = torch.device(device)
    if size == 1:
        yield Ranks(device=place)
        return
    if place.type == "cuda":
        if local_rank > torch.cuda.device_count():  # the first that is too many says it
            raise SystemExit(DependencyError.exit_code)
        if local_rank == torch.cuda.device_count():
            raise DependencyError(
                f"process {rank} is number {local_rank} of its machine, where torch sees "
                f"{torch.cuda.device_count()} CUDA devices: start as many processes as GPUs"
            )
        place = torch.device("cuda", local_rank)
        torch.cuda.set_device(place)
    try:
        if place.type == "cuda":
            dist.init_process_group("nccl", device_id=place)
        else:
            dist.init_process_group("gloo")
    except (RuntimeError, ValueError) as error:  # unreachable, or a variable is missing
        raise DependencyError(
            f"process {rank} of {size} finds no way to the others ({_first_line(error)}): start "
            "them with torchrun, and check its --rdzv-endpoint"
        ) from error
    ranks = Ranks(rank=rank, size=size, local_rank=local_rank, device=place)
    watch = Watch(rank, size, last_words)
    ranks.wait()  # all have shown their first sign of life
    watch.start()
    try:
        yield ranks
        ranks.wait()  # the first process has written everything
    except BaseException as error:
        # No orderly leave: where a process is gone, that may wait for it for ever.
        watch.give_up(error)
        raise
    watch.stop()
    dist.destroy_process_group()


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, about BUCKET_VALUES values each."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) >= BUCKET_VALUES
        if bucket and (full or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo and of NCCL, whatever happened to the connection
        raise LostProcess(
            f"the connection to another process broke ({_first_line(error)}): {REMEDY}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _whole_number(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdigit():
        raise InputError(f"the environment's {name} is '{value}': expected a whole number")
    return int(value)
