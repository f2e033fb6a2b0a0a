from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.conditioning import PAPER_KNOTS, hat_weights
from oat_edge.nn.condition import HatWeights

KNOTS = st.sampled_from([PAPER_KNOTS, (0.0, 1.0), (0.0, 0.05, 1.0), (1.0,), (0.0,), (0.3,)])


@given(KNOTS, st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20), st.booleans())
def test_torch_and_numpy_agree_bit_for_bit(
    knots: tuple[float, ...], lam: list[float], through_zero: bool
) -> None:
    expected = hat_weights(lam, knots, through_zero=through_zero)
    got = HatWeights(knots, through_zero=through_zero)(
        torch.tensor(lam, dtype=torch.float32)
    ).numpy()
    # Denormal λ: torch may flush it to zero, numpy does not. Nobody sets such a λ.
    normal = (np.float32(lam) == 0) | (np.float32(lam) > 1e-37)
    np.testing.assert_array_equal(got[normal], expected[normal])
