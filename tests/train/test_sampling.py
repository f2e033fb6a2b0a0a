from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.train.sampling import choice, generator_for, sample_knots, sample_widths


@given(
    batch=st.integers(2, 300),
    knots=st.integers(2, 8),
    share=st.one_of(st.none(), st.just(0.0), st.floats(0.01, 0.99)),
    seed=st.integers(0, 2**32),
)
def test_the_share_of_clean_samples_is_exact(
    batch: int, knots: int, share: float | None, seed: int
) -> None:
    index = sample_knots(batch, knots, share, torch.Generator().manual_seed(seed))
    expected = math.ceil((1 / knots if share is None else share) * batch)
    assert index.shape == (batch,)
    assert (index == 0).sum() == min(expected, batch - 1)
    assert 0 <= index.min() <= index.max() < knots


def test_the_papers_batch_has_22_clean_samples() -> None:
    index = sample_knots(128, 6, None, torch.Generator().manual_seed(0))
    assert (index == 0).sum() == 22


def test_clean_samples_lie_anywhere_and_the_others_are_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([sample_knots(60, 6, None, generator) for _ in range(2000)])
    per_place = (draws == 0).float().mean(dim=0)
    assert (per_place - 1 / 6).abs().max() < 0.05
    counts = torch.bincount(draws[draws > 0], minlength=6)[1:].float()
    assert (counts / counts.sum() - 0.2).abs().max() < 0.01


def test_a_dedicated_network_has_one_knot() -> None:
    assert not sample_knots(5, 1, None, torch.Generator()).any()


@given(
    between=st.lists(st.integers(26, 99), unique=True, max_size=5).map(sorted),
    num=st.one_of(st.none(), st.integers(0, 6)),
    seed=st.integers(0, 1000),
)
def test_a_sandwich_has_both_ends_and_as_many_between_as_asked(
    between: list[int], num: int | None, seed: int
) -> None:
    widths = (0.25, *[width / 100 for width in between], 1.0)
    drawn = sample_widths(widths, num, torch.Generator().manual_seed(seed))
    assert set(drawn) <= set(widths)
    assert list(drawn) == sorted(set(drawn))
    assert (drawn[0], drawn[-1]) == (0.25, 1.0)
    expected = len(between) if num is None else min(num, len(between))
    assert len(drawn) == 2 + expected
    assert sample_widths((1.0,), num, torch.Generator()) == (1.0,)


def test_all_widths_draw_nothing_and_any_width_may_be_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    sample_widths((0.5, 0.75, 1.0), None, generator)
    assert torch.equal(generator.get_state(), state)
    assert {choice((0.5, 0.75, 1.0), generator) for _ in range(40)} == {0.5, 0.75, 1.0}


def test_streams_differ_by_seed_epoch_and_step() -> None:
    places = [(s, e, i) for s in range(3) for e in range(3) for i in range(3)]
    draws = {p: float(torch.rand((), generator=generator_for(*p))) for p in places}
    assert len(set(draws.values())) == len(places)
    assert float(torch.rand((), generator=generator_for(1, 2, 0))) == draws[(1, 2, 0)]
