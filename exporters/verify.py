"""Parity of an export: does the file compute what the trained network computes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from oat_edge.errors import GateError
from oat_edge.evaluation.parity import (
    Agreement,
    Gate,
    batch_sizes,
    compare_logits,
    compared_lambdas,
    describe_relative,
    expected_logits,
    gate_for,
)
from oat_edge.evaluation.reference import network_logits
from oat_edge.runtime.runner import Float32, Runner

if TYPE_CHECKING:
    from oat_edge.nn.network import OATSNetwork

# A wrong weight shows in the logits of any image, so a few will do for a gate on differences. A
# share needs many pairs: at 64 images and the paper's 12 λ, 3 of 768 may have another class.
DIFFERENCE_IMAGES = 16
SHARE_IMAGES = 64
SHARE_PAIRS = 256
"""Of a pinned file, whose one λ makes as many pairs as there are images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How far an artifact is from the PyTorch network."""

    reference: str
    gate: Gate
    max_abs_diff: float
    """Largest difference of a logit."""
    mean_abs_diff: float
    argmax_agreement: float
    """Share of (image, λ) pairs with the same class."""
    tolerance: float | None
    """What `max_abs_diff` may be; None: the gate is on the agreement."""
    num_images: int
    num_pairs: int
    lambdas: tuple[float, ...]
    """Every λ that was compared; batches mix them."""
    batch_sizes: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def check_parity(
    network: OATSNetwork,
    width: float,
    runner: Runner,
    images: Float32,
    *,
    batches: Sequence[int] | None = None,
) -> Parity:
    """Compare a runner with the unfolded network of the same width.

    images: (N, C, H, W) float32 in [0, 1]; as many are used as the gate of the runner's precision
    needs, spread over all of them: 16 for fp32, for fp16 64 or, pinned, 256. λ: all knots, points
    between them and below the first; a pinned runner is compared at its λ. batches: of an engine's
    profile. Raises `GateError` if the gate is not met.
    """
    pinned = runner.io.pinned_lambda
    lambdas = (pinned,) if pinned is not None else compared_lambdas(network.knots)
    gate = gate_for(runner.precision, runner.device)
    num = min(_num_images(gate, len(lambdas)), len(images))
    images = images[np.linspace(0, len(images) - 1, num).round().astype(int)]
    expected = expected_logits(network_logits(network, width), images, lambdas)
    sizes = batch_sizes(runner, batches)
    found = compare_logits(runner, images, lambdas, expected, sizes=sizes)
    if gate.passed(found) is False:
        raise GateError(
            f"width {width:g} in {runner.backend} {_how_far(found, gate)}: "
            "nothing was added to the bundle; please report this"
        )
    assert found.max_abs_diff is not None and found.mean_abs_diff is not None
    return Parity(
        reference="torch, unfolded",
        gate=gate,
        max_abs_diff=found.max_abs_diff,
        mean_abs_diff=found.mean_abs_diff,
        argmax_agreement=found.argmax_agreement,
        tolerance=gate.limit if gate.kind == "max_abs_diff" else None,
        num_images=num,
        num_pairs=found.num_pairs,
        lambdas=lambdas,
        batch_sizes=sizes,
    )


def _num_images(gate: Gate, num_lambdas: int) -> int:
    if gate.kind == "max_abs_diff":
        return DIFFERENCE_IMAGES
    return max(SHARE_IMAGES, -(-SHARE_PAIRS // num_lambdas))


def _how_far(found: Agreement, gate: Gate) -> str:
    if found.max_abs_diff is None:
        return "or PyTorch has logits that are not finite numbers"
    if off_scale := describe_relative(found, gate):
        return off_scale
    if gate.kind == "argmax_agreement":
        return (
            f"has PyTorch's class on {found.argmax_agreement:.2%} of {found.num_pairs} (image, λ) "
            f"pairs, expected {gate.limit:.1%} or more"
        )
    worst = found.worst_lambda
    return (
        f"differs from PyTorch by {found.max_abs_diff:.2g} at λ={worst.lam:g}, "
        f"allowed is {gate.limit:g}"
    )
