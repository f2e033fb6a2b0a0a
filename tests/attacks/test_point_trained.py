from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from oat_edge.attacks.plan import (
    Images,
)
from oat_edge.attacks.point import PointResult
from oat_edge.data import load
from oat_edge.nn.fold import fold
from oat_edge.operating_point import OperatingPoint
from oat_edge.train.checkpoint import load_checkpoint
from tests.attacks.test_point import MANY, Changed, flags, plan, run


@pytest.fixture(scope="module")
def trained(trained_run):
    test = load("digits", train_samples=600).test
    part = slice(MANY)
    images = Images(images=test.images[part], labels=test.labels[part], indices=np.arange(MANY))
    return load_checkpoint(trained_run), images


def run_trained(folder: Path, trained, change=lambda network: fold(network, 1.0)) -> PointResult:
    checkpoint, images = trained
    what = plan("square", eps=checkpoint.spec.eps, num_classes=10, num_queries=150)
    folded = change(copy.deepcopy(checkpoint.network))
    return run(folder, what, folded=folded, data=images, at=OperatingPoint(1.0, 1.0))


def scaled_head(network):
    """A real OATSNetwork whose logits are 1e4 times as large."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "head" in name or "fc" in name or "linear" in name:
                parameter.mul_(1e4)
    return fold(network, 1.0)


def test_a_trained_network_is_flagged_by_nothing(trained, tmp_path):
    result = run_trained(tmp_path, trained)
    assert {check.name: check.flagged for check in result.checks} == dict.fromkeys(
        ["randomised output", "zero gradient", "single step", "restarts", "growing ε", "square"],
        False,
    )
    assert result.outcome.clean.mean() > 0.6 and 0 < result.outcome.robust["worst"].mean() < 0.8


def test_logits_times_ten_thousand_mask_the_gradients_and_are_flagged(trained, tmp_path):
    honest, masked = run_trained(tmp_path / "h", trained), run_trained(
        tmp_path / "m", trained, scaled_head
    )  # fmt: skip
    assert np.array_equal(honest.outcome.clean, masked.outcome.clean)
    assert "zero gradient" in flags(masked)
    # It looks more robust and is not: Square, which sees the order of the logits, says so.
    pgd = [one.outcome.robust["pgd20"].mean() for one in (honest, masked)]
    assert pgd[1] > pgd[0]


def test_quantised_input_and_noise_are_flagged(trained, tmp_path):
    noise = torch.Generator().manual_seed(0)
    quantised = run_trained(
        tmp_path / "q", trained,
        lambda network: Changed(fold(network, 1.0), before=lambda x: (15 * x).round() / 15),
    )  # fmt: skip
    assert {"zero gradient", "growing ε"} <= flags(quantised)
    noisy = run_trained(
        tmp_path / "n", trained,
        lambda network: Changed(
            fold(network, 1.0), after=lambda z: z + torch.randn(z.shape, generator=noise)
        ),
    )  # fmt: skip
    assert "randomised output" in flags(noisy)
