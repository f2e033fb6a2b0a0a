"""Parity: does an open artifact compute what its reference computes?

    N images, L lambdas, K classes

What is compared are pairs of an image and a λ. Every pair goes through the artifact in a batch
that mixes λ, and some of them alone and in batches of other sizes: a graph that takes one λ for
the whole batch, or that only works at one batch size, is as wrong as one with wrong weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from oat_edge.errors import GateError
from oat_edge.runtime.runner import Float32, Runner

# (N, C, H, W) images and (N,) λ to (N, K) logits.
Logits = Callable[[Float32, Float32], Float32]
Int64 = npt.NDArray[np.int64]

# DESIGN, section 5: float32 sums in another order; on a GPU (TF32 off) other algorithms as well.
MAX_ABS_DIFF = {"cpu": 1e-4, "gpu": 1e-3}
MIN_AGREEMENT = 0.995
# Of the largest logit. Half precision moved logits by 0.23 % of it at most (docs/results.md).
# Classes alone are too weak: with λ rounded to tenths 99.7 % of a file's classes were right.
MAX_HALF_DIFF = 0.02
# Fewer pairs than these and one near-tie fails the gate: 99.5 % of them is all of them.
MIN_PAIRS = 200
BATCHES = (1, 5, 32)
LARGEST_BATCH = 256
REFERENCE_BATCH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class AtLambda:
    """The pairs of one λ."""

    lam: float
    max_abs_diff: float | None
    """Largest difference of a logit; None: some logits are not finite numbers."""
    mean_abs_diff: float | None
    argmax_agreement: float
    """Share of pairs that have the reference's class wherever they were computed."""
    num_pairs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far an artifact is from its reference. Fields as in `AtLambda`."""

    max_abs_diff: float | None
    mean_abs_diff: float | None
    relative_diff: float | None
    """`max_abs_diff` over the reference's largest logit."""
    argmax_agreement: float
    num_pairs: int
    num_not_finite: int
    """Pairs with NaN or infinity in the artifact's logits or in the reference's."""
    by_lambda: tuple[AtLambda, ...]
    batch_sizes: tuple[int, ...]

    @property
    def worst_lambda(self) -> AtLambda:
        """Where the largest difference is (a number that is not finite is the largest)."""
        return max(
            self.by_lambda,
            key=lambda one: float("inf") if one.max_abs_diff is None else one.max_abs_diff,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """What an artifact must keep to."""

    kind: Literal["max_abs_diff", "argmax_agreement", "none"]
    limit: float | None
    """Largest difference of a logit, or smallest share of pairs with the reference's class."""
    max_relative_diff: float | None = None
    """Beside a share: largest difference of a logit over the reference's largest logit."""

    def passed(self, found: Agreement) -> bool | None:
        """None: there is no gate. Logits that are not finite never pass."""
        if found.num_not_finite or found.max_abs_diff is None or found.relative_diff is None:
            return False
        if self.max_relative_diff is not None and found.relative_diff > self.max_relative_diff:
            return False
        if self.limit is None:
            return None
        if self.kind == "argmax_agreement":
            return found.argmax_agreement >= self.limit
        return found.max_abs_diff <= self.limit


def gate_for(precision: str, device: str) -> Gate:
    """The gate of a runner's `precision` on its `device`.

    int8 has none here: rounding to 256 levels moves logits by design, and what it may cost is
    accuracy, which is measured on labels.
    """
    if precision == "fp32":
        place = "cpu" if device == "cpu" else "gpu"
        return Gate(kind="max_abs_diff", limit=MAX_ABS_DIFF[place])
    if precision in ("fp16", "fp16-emulated"):
        limits = {"limit": MIN_AGREEMENT, "max_relative_diff": MAX_HALF_DIFF}
        return Gate(kind="argmax_agreement", **limits)
    if precision in ("int8", "int8-emulated"):
        return Gate(kind="none", limit=None)
    raise ValueError(f"precision is '{precision}': no gate is known for it")


def describe_relative(found: Agreement, gate: Gate) -> str | None:
    """How logits miss the limit beside the share of classes; None if they, or both, do not."""
    limit, relative = gate.max_relative_diff, found.relative_diff
    if limit is None or relative is None or relative <= limit:
        return None
    if gate.limit is not None and found.argmax_agreement < gate.limit:
        return None  # the share says it better
    return (
        f"has logits off by {relative:.1%} of the largest (at λ={found.worst_lambda.lam:g}; half "
        f"precision explains less than {limit:.0%})"
    )


def compared_lambdas(knots: tuple[float, ...]) -> tuple[float, ...]:
    """The knots, the middle of each gap, and (below the first non-zero knot) a small λ."""
    between = [round((a + b) / 2, 9) for a, b in pairwise(knots)]  # 0.15, not 0.15000000000000002
    small = [1e-3] if len(knots) > 1 else []
    return tuple(sorted({*knots, *between, *small}))


def batch_sizes(runner: Runner, batches: Sequence[int] | None = None) -> tuple[int, ...]:
    """Images per request to compare with, growing: 1 and others, as far as the runner takes them.

    batches: fewest, usual and most images of an engine's profile (`Recipe.batches`).
    """
    low, usual, high = batches or (1, BATCHES[-1], runner.batch_limit or BATCHES[-1])
    high = min(high, runner.batch_limit or high)
    wanted = {*BATCHES, usual, min(high, LARGEST_BATCH)}
    return tuple(sorted({min(max(size, low), high) for size in wanted}))


def expected_logits(
    logits: Logits, images: Float32, lambdas: Sequence[float]
) -> npt.NDArray[np.float32]:
    """The reference's logits of all pairs, (L, N, K). One λ per batch: nothing can mix them up."""
    found = []
    for lam in lambdas:
        parts = [images[i : i + REFERENCE_BATCH] for i in range(0, len(images), REFERENCE_BATCH)]
        rows = [logits(part, np.full(len(part), lam, dtype=np.float32)) for part in parts]
        found.append(np.concatenate(rows))
    return np.stack(found)


def compare_logits(
    runner: Runner,
    images: Float32,
    lambdas: Sequence[float],
    expected: Float32,
    *,
    sizes: tuple[int, ...],
    progress: Callable[[float], None] = lambda share: None,
) -> Agreement:
    """Run every pair and compare.

    images: (N, C, H, W) in [0, 1]. expected: (L, N, K) from `expected_logits`. sizes: growing.
    progress: told the share that is done. Raises `GateError` for logits of another shape.
    """
    pairs = (len(lambdas), len(images))
    worst, total, count = np.zeros(pairs), np.zeros(pairs), np.zeros(pairs)
    agree, finite = np.ones(pairs, dtype=bool), np.ones(pairs, dtype=bool)
    lam_l = np.asarray(lambdas, dtype=np.float32)
    todo = list(requests(*pairs, sizes))
    for done, place in enumerate(todo):
        lam, image = place
        got, wanted = runner.infer(images[image], lam_l[lam]), expected[place]
        if got.shape != wanted.shape:
            raise GateError(
                f"{runner.backend} gives logits {got.shape} for {len(image)} images, expected "
                f"{wanted.shape}: please report this"
            )
        # max() alone would let NaN pass; inf - inf is NaN as well.
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.abs(got.astype(np.float64) - wanted)
        np.maximum.at(worst, place, difference.max(1))
        np.add.at(total, place, difference.mean(1))
        np.add.at(count, place, 1)
        np.logical_and.at(finite, place, np.isfinite(difference).all(1))
        np.logical_and.at(agree, place, got.argmax(1) == wanted.argmax(1))
        progress((done + 1) / len(todo))
    mean = total / count
    by_lambda = tuple(
        AtLambda(
            lam=float(lam),
            max_abs_diff=float(worst[i].max()) if finite[i].all() else None,
            mean_abs_diff=float(mean[i].mean()) if finite[i].all() else None,
            argmax_agreement=float((agree & finite)[i].mean()),
            num_pairs=len(images),
        )
        for i, lam in enumerate(lambdas)
    )
    largest = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    return Agreement(
        max_abs_diff=float(worst.max()) if finite.all() else None,
        relative_diff=float(worst.max()) / largest if finite.all() else None,
        mean_abs_diff=float(mean.mean()) if finite.all() else None,
        argmax_agreement=float((agree & finite).mean()),
        num_pairs=agree.size,
        num_not_finite=int((~finite).sum()),
        by_lambda=by_lambda,
        batch_sizes=sizes,
    )


def requests(
    num_lambdas: int, num_images: int, sizes: tuple[int, ...]
) -> Iterator[tuple[Int64, Int64]]:
    """Which λ and which image each sample of each request has.

    Every pair at the largest size with λ mixed; every λ alone at every size; at the sizes between
    each λ once more, mixed. The last request of a series is filled up with its first samples.
    """
    order = np.arange(num_lambdas * num_images)
    # Neighbours differ in λ and in the image.
    lam, image = order % num_lambdas, (order // num_lambdas + order % num_lambdas) % num_images
    for start in range(0, len(order), sizes[-1]):
        part = np.arange(start, start + sizes[-1]) % len(order)
        yield lam[part], image[part]
    for size in sizes:
        for one in range(num_lambdas):
            yield np.full(size, one), (np.arange(size) + one) % num_images
    for size in sizes[:-1]:
        for start in range(0, num_lambdas, size) if size > 1 else ():
            part = np.arange(start, start + size)
            yield part % num_lambdas, part % num_images
