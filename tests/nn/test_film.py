from __future__ import annotations

import pytest
import torch

from oat_edge.conditioning import PAPER_KNOTS
from oat_edge.nn.film import FiLM, encode_knots


@pytest.mark.parametrize("kind", ["random", "dct", "onehot"])
def test_encodings_are_orthonormal(kind: str) -> None:
    rows = encode_knots(kind, PAPER_KNOTS, 128, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    assert rows.shape == (6, 6 if kind == "onehot" else 128)
    torch.testing.assert_close(rows @ rows.T, torch.eye(6), atol=1e-5, rtol=0)


def test_encoding_none_is_lambda_itself() -> None:
    rows = encode_knots("none", PAPER_KNOTS, 128, torch.Generator())
    torch.testing.assert_close(rows, torch.tensor(PAPER_KNOTS)[:, None])


def test_random_encoding_follows_the_generator() -> None:
    def draw(seed: int) -> torch.Tensor:
        return encode_knots("random", PAPER_KNOTS, 16, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(3), draw(3))
    assert not torch.allclose(draw(3), draw(4), atol=1e-2)


def test_film_starts_as_the_identity() -> None:
    gamma, beta = FiLM(128, 8)(torch.randn(6, 128))
    assert torch.equal(gamma, torch.ones(6, 8))
    assert torch.equal(beta, torch.zeros(6, 8))
