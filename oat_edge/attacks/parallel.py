"""An attack on a CPU: the batch in parts, each attacked in a Python thread of its own.

Small convolutions gain little from a second OpenMP thread, and what lies between them nothing.
Parts of a batch need each other nowhere, so they wait for each other once per attack and not
once per operation.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

MIN_SAMPLES = 8
"""Of a part: below, one thread's convolutions get slower per image."""
MAX_PARTS = 4
"""The layers' Python code runs in one thread at a time: more parts would wait for it."""

Attack = Callable[[slice, torch.Generator, Tensor], Tensor]


def in_parts(attack: Attack, among: Tensor, generator: torch.Generator) -> Tensor:
    """Attack a batch in as many parts as torch has threads for; the parts' results, joined.

    among: (M,) bool, which images of the whole batch are here (`pgd`). attack: takes the part of
    these images, a generator, and `among` for this part; it is called in several threads at once.
    Every image gets the noise that it would get without parts, and the generator ends in the same
    state. One thread, or a batch elsewhere than on the CPU: one call, with `among` as it is.
    """
    if among.device.type != "cpu":
        return attack(slice(None), generator, among)
    places = among.nonzero().flatten()
    threads = torch.get_num_threads()
    parts = min(threads, MAX_PARTS, len(places) // MIN_SAMPLES)
    if parts < 2:
        return attack(slice(None), generator, among)
    jobs = []
    for chunk in torch.arange(len(places)).chunk(parts):
        part = slice(int(chunk[0]), int(chunk[-1]) + 1)
        mine = torch.zeros_like(among)
        mine[places[part]] = True
        # Each draws the whole batch's noise: one with the generator itself, so that it moves on.
        own = generator.clone_state() if part.start else generator
        jobs.append((part, own, mine))
    try:
        # A thread's own setting under OpenMP, but also what threads to come begin with.
        with ThreadPoolExecutor(
            parts, "attack", torch.set_num_threads, (threads // parts,)
        ) as pool:
            return torch.cat(list(pool.map(lambda job: attack(*job), jobs)))
    finally:
        torch.set_num_threads(threads)
