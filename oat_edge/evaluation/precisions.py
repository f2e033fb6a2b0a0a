"""The same network in several precisions side by side: what a precision costs, image by image.

    N images

Two shares of the same images differ by far less chance than two shares of different ones, so the
intervals are of paired differences. An int8 file is also asked whether it only masks gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from oat_edge.bundle import Artifact, Bundle
from oat_edge.evaluation.accuracy import interval
from oat_edge.evaluation.checks import QUANTISED_GRADIENTS, Check, check_quantised_gradients
from oat_edge.evaluation.config import GRAPH_ATTACK
from oat_edge.evaluation.outcome import Bool, Outcome
from oat_edge.evaluation.pack_set import WORST, PackSet

FP32, INT8 = "fp32", "int8"


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """An accuracy in float32 and in another precision; shares of the same images, in [0, 1]."""

    fp32: float
    other: float
    lost: float
    """fp32 - other; negative: the other is better."""
    lost_interval: tuple[float, ...]
    """95 %, of the paired difference (Newcombe 1998, method 10)."""
    only_fp32: int
    """Images that are right in float32 alone."""
    only_other: int
    """Images that are right in the other precision alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionDrop:
    """One file at one λ beside the float32 file of the same network, format and device."""

    artifact: str
    fp32_artifact: str | None
    format: str
    backend: str
    precision: str
    width: float
    lam: float
    pinned: bool
    num_samples: int
    standard_accuracy: Drop | None
    robust_accuracy: dict[str, Drop]
    """By attack that both files stood, "transfer" and "worst", as in the rows."""
    masking: Check | None
    """Of an int8 file: does it stand the attack made on itself better only because its gradients
    are harder to follow? None: another precision."""
    reason: str | None
    """Why there are no drops."""

    @property
    def worst(self) -> Drop | None:
        """Of the worst case."""
        return self.robust_accuracy.get(WORST)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FileOutcomes:
    """What came out of one file."""

    artifact: Artifact
    backend: str
    precision: str
    """What ran; "fp16-emulated" on a CPU."""
    outcomes: Mapping[float, Outcome]
    """By λ."""


def precision_drops(
    bundle: Bundle, packs: PackSet | None, files: Sequence[FileOutcomes]
) -> tuple[PrecisionDrop, ...]:
    """Every file that is not float32 beside the one that is, in the order of `files`.

    packs: what was replayed; they say which int8 file the attack on int8 was made on. Empty if
    all files are of one precision; where only the float32 file is missing, the reason says so.
    """
    if len({_base(file) for file in files}) < 2 and all(_base(file) != INT8 for file in files):
        return ()
    return tuple(
        drop for file in files if _base(file) != FP32 for drop in _drops(bundle, packs, file, files)
    )


def drop_of(fp32: Bool, other: Bool) -> Drop:
    """The drop from `fp32` to `other`, (N,) which of the same images are right."""
    only_fp32, only_other = int((fp32 & ~other).sum()), int((other & ~fp32).sum())
    both, n = int((fp32 & other).sum()), len(fp32)
    return Drop(
        fp32=float(fp32.mean()),
        other=float(other.mean()),
        lost=(only_fp32 - only_other) / n,
        lost_interval=paired_interval(both, only_fp32, only_other, n),
        only_fp32=only_fp32,
        only_other=only_other,
    )


def paired_interval(both: int, only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares of the same n images (Newcombe 1998).

    Method 10 of Statistics in Medicine 17:2635: Wilson's intervals of both shares, put together
    with their correlation. Wald's, which is usual, has no width where no image differs.
    """
    neither = n - both - only_first - only_second
    first, second = (both + only_first) / n, (both + only_second) / n
    (low_1, high_1), (low_2, high_2) = interval(first, n), interval(second, n)
    margins = (
        (both + only_first)
        * (only_second + neither)
        * (both + only_second)
        * (only_first + neither)
    )
    product = both * neither - only_first * only_second
    corrected = max(product - n / 2, 0.0) if product > 0 else float(product)
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))

    difference = (only_first - only_second) / n
    low = difference - reach(first - low_1, high_2 - second)
    high = difference + reach(high_1 - first, second - low_2)
    return max(low, -1.0), min(high, 1.0)


def _drops(
    bundle: Bundle, packs: PackSet | None, file: FileOutcomes, files: Sequence[FileOutcomes]
) -> Iterator[PrecisionDrop]:
    fp32 = next((one for one in files if _base(one) == FP32 and _same_network(one, file)), None)
    for lam, outcome in file.outcomes.items():
        artifact = file.artifact
        before = None if fp32 is None else fp32.outcomes.get(lam)
        reason = None
        if fp32 is None:
            reason = (
                f"no {FP32} file of width {artifact.width:g} ran beside it in {file.backend}: "
                f"oat-edge export --format {artifact.format} --precision {FP32}"
            )
        elif before is None:
            reason = f"{fp32.artifact.file} was not evaluated at λ={lam:g}"
        masking = None
        if _base(file) == INT8:
            why_not = reason or _not_crafted_on(bundle, packs, artifact)
            masking = (
                check_quantised_gradients(before.robust, outcome.robust)
                if before is not None and why_not is None
                else Check(name=QUANTISED_GRADIENTS, flagged=None, evidence=str(why_not))
            )
        yield PrecisionDrop(
            artifact=artifact.file,
            fp32_artifact=None if fp32 is None else fp32.artifact.file,
            format=artifact.format,
            backend=file.backend,
            precision=file.precision,
            width=artifact.width,
            lam=lam,
            pinned=artifact.pinned_lambda is not None,
            num_samples=len(outcome.clean),
            standard_accuracy=None if before is None else drop_of(before.clean, outcome.clean),
            robust_accuracy={} if before is None else _robust(before, outcome),
            masking=masking,
            reason=reason,
        )


def _robust(before: Outcome, outcome: Outcome) -> dict[str, Drop]:
    first, second = before.robust, outcome.robust
    # Worst cases over different attacks do not compare.
    names = [
        name for name in second if name in first and (name != WORST or set(first) == set(second))
    ]
    return {name: drop_of(first[name], second[name]) for name in names}


def _base(file: FileOutcomes) -> str:
    """Without "-emulated"."""
    return file.precision.partition("-")[0]


def _same_network(one: FileOutcomes, other: FileOutcomes) -> bool:
    first, second = one.artifact, other.artifact
    return (first.format, first.width, first.pinned_lambda, one.backend) == (
        second.format,
        second.width,
        second.pinned_lambda,
        other.backend,
    )


def _not_crafted_on(bundle: Bundle, packs: PackSet | None, artifact: Artifact) -> str | None:
    """Why the attack on int8 is not one on this very file; None if it is."""
    remedy = f"oat-edge export --width {artifact.width:g} --precision {INT8}"
    of_width = [pack for pack in (packs.packs if packs else ()) if pack.width == artifact.width]
    pack = next((pack for pack in of_width if pack.attack == GRAPH_ATTACK), None)
    if pack is None:
        return f"no {GRAPH_ATTACK} pack of width {artifact.width:g} was replayed: {remedy}"
    crafted_on = pack.settings.get("crafted_on") or {}
    if crafted_on.get("sha256") == _graph_sha256(bundle, artifact):
        return None
    return (
        f"the {GRAPH_ATTACK} pack was made on {crafted_on.get('file', 'an unknown file')}, not on "
        f"the graph of {artifact.file}: its gradients are another file's"
    )


def _graph_sha256(bundle: Bundle, artifact: Artifact) -> str | None:
    """Of the ONNX file: its own, or that an engine is built from."""
    if artifact.source is None:
        return artifact.sha256
    return next((one.sha256 for one in bundle.artifacts if one.file == artifact.source), None)
