"""Few sizes of requests where each new one is dear."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from oat_edge.runtime.runner import Float32, Runner


def steady(runner: Runner) -> Callable[[Float32, float], Float32]:
    """`runner.infer` for one λ and any number of images that the runner takes.

    On a GPU each new batch size costs kernels to be chosen and a graph to be captured: there a
    request is filled up with copies of its last image to the next power of two.
    """
    if runner.device == "cpu":
        return runner.infer

    def infer(image: Float32, lam: float) -> Float32:
        size = request_size(len(image), most=runner.batch_limit)
        if size == len(image):
            return runner.infer(image, lam)
        copies = np.repeat(image[-1:], size - len(image), axis=0)
        return runner.infer(np.concatenate([image, copies]), lam)[: len(image)]

    return infer


def request_size(num: int, *, most: int | None) -> int:
    """The power of two that holds `num` images, or `most` if that is less and holds them."""
    size = 1 << (num - 1).bit_length()
    return size if most is None else max(min(size, most), num)
