from __future__ import annotations

import pytest
import torch

from oat_edge.nn.fold import fold
from oat_edge.operating_point import OperatingPoint
from oat_edge.train.validate import PointAccuracy, grid_score, validate
from tests.conftest import make_network


def test_the_grid_is_complete_and_standard_accuracy_is_exact() -> None:
    network = make_network(widths=(0.5, 1.0))
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    labels = torch.randint(0, 10, (40,))
    folded = {width: fold(network, width) for width in network.widths}
    grid = validate(
        folded,
        images,
        labels,
        eps=0.0,
        attack_steps=1,
        attack_alpha=1 / 255,
        num_attacked=40,
        seed=0,
        batch_size=16,
    )
    assert len(grid) == 2 * 6
    for point in grid:
        lam = torch.full((40,), point.point.lam)
        with torch.no_grad():
            logits = network(images.float() / 255, lam, point.point.width)
        expected = (logits.argmax(1) == labels).float().mean().item()
        assert point.standard == pytest.approx(expected)
        assert point.robust == pytest.approx(expected), "at eps = 0 nothing can be attacked"


def test_the_batch_size_changes_nothing() -> None:
    """Nor do several λ in one batch: every image starts its attack where it does alone."""
    network = make_network(widths=(0.5, 1.0))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8, generator=generator)
    folded = {width: fold(network, width) for width in network.widths}
    with torch.no_grad():
        labels = folded[1.0](images / 255, torch.zeros(30)).argmax(dim=1)  # right until attacked

    def grid(batch_size: int | None) -> list[PointAccuracy]:
        # The start decides: a longer step would turn the rounding of a gradient into its length.
        return validate(
            folded, images, labels, eps=0.5, attack_steps=1, attack_alpha=1e-4,
            num_attacked=20, seed=0, batch_size=batch_size,
        )  # fmt: skip

    whole = grid(None)
    assert 0 < whole[6].robust < whole[6].standard == 1
    for batch_size in (1, 7, 20, 90):
        assert grid(batch_size) == whole


def test_score_weighs_accuracies_as_the_loss_weighs_losses() -> None:
    grid = [
        PointAccuracy(OperatingPoint(1.0, 0.0), 0.9, 0.1),
        PointAccuracy(OperatingPoint(1.0, 0.4), 0.8, 0.3),
        PointAccuracy(OperatingPoint(1.0, 1.0), 0.7, 0.5),
    ]
    assert grid_score(grid) == pytest.approx((0.9 + 0.6 * 0.8 + 0.4 * 0.3 + 0.5) / 3)
