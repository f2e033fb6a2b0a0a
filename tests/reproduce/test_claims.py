"""What is said of differences follows from their intervals and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oat_edge.operating_point import OperatingPoint
from oat_edge.reproduce.claims import better_at_half, better_everywhere, in_points, no_worse, signed
from oat_edge.reproduce.spread import Spread

ORDER = ("refuted", "not seen", "seen", "shown")


def spread(low, mean, high, num_seeds=2):
    return Spread(mean=mean, interval=(low, high), std=0.0, by_seed=(mean,) * num_seeds)


share = st.integers(-1000, 1000).map(lambda n: n / 1000)
spreads = st.lists(share, min_size=3, max_size=3).map(lambda three: spread(*sorted(three)))
by_point = st.lists(spreads, min_size=1, max_size=8).map(
    lambda found: {OperatingPoint(1.0, i / 8): one for i, one in enumerate(found)}
)


@given(by_point)
def test_no_worse_is_shown_only_if_every_interval_stays_above_the_margin(found):
    claim = no_worse("SA", "others", found, 0.01)
    assert (claim.status == "shown") == all(one.interval[0] >= -0.01 for one in found.values())
    if claim.status == "refuted":
        assert any(one.interval[1] < -0.01 for one in found.values())
    if claim.status == "seen":
        assert all(one.mean >= -0.01 for one in found.values())


@given(by_point)
def test_one_seed_shows_nothing_and_refutes_nothing(found):
    alone = {p: spread(one.interval[0], one.mean, one.interval[1], 1) for p, one in found.items()}
    for claim, several in (
        (no_worse("SA", "x", alone, 0.01), no_worse("SA", "x", found, 0.01)),
        (better_everywhere("SA", "x", alone), better_everywhere("SA", "x", found)),
        (better_at_half("SA", "x", alone), better_at_half("SA", "x", found)),
    ):
        assert claim.status in ("seen", "not seen")
        assert (claim.status == "seen") == (several.status in ("seen", "shown"))


def test_one_point_of_many_refutes_less_easily_than_a_single_one():
    one = spread(-0.05, -0.03, -0.0105)
    assert no_worse("SA", "x", {OperatingPoint(1.0, 0.0): one}, 0.01).status == "refuted"
    many = {OperatingPoint(1.0, i / 10): one for i in range(6)}
    assert no_worse("SA", "x", many, 0.01).status == "not seen"


@given(by_point)
def test_better_everywhere_is_shown_only_if_every_interval_is_above_zero(found):
    claim = better_everywhere("SA", "others", found)
    assert (claim.status == "shown") == all(one.interval[0] > 0 for one in found.values())
    assert (claim.status == "seen") <= all(one.mean > 0 for one in found.values())


@given(by_point)
def test_better_at_half_counts_intervals_above_zero(found):
    claim = better_at_half("RA", "others", found)
    num = sum(one.interval[0] > 0 for one in found.values())
    assert (claim.status == "shown") == (2 * num >= len(found))
    assert f"at {num} by the intervals" in claim.evidence


@given(by_point, st.floats(0, 0.2))
def test_a_better_network_never_has_a_weaker_claim(found, gain):
    more = {
        point: spread(one.interval[0] + gain, one.mean + gain, one.interval[1] + gain)
        for point, one in found.items()
    }
    for before, after in (
        (no_worse("SA", "x", found, 0.01), no_worse("SA", "x", more, 0.01)),
        (better_everywhere("SA", "x", found), better_everywhere("SA", "x", more)),
        (better_at_half("SA", "x", found), better_at_half("SA", "x", more)),
    ):
        assert ORDER.index(after.status) >= ORDER.index(before.status)


@given(spreads)
def test_without_an_interval_the_figures_are_all_there_is(one):
    """Intervals that span everything can show nothing and refute nothing."""
    wide = {OperatingPoint(1.0, 0.0): spread(-1.0, one.mean, 1.0)}
    for claim in (no_worse("SA", "x", wide, 0.01), better_everywhere("SA", "x", wide)):
        assert claim.status in ("seen", "not seen")


def test_a_loss_of_just_the_margin_is_met():
    exact = {OperatingPoint(1.0, 0.0): spread(-0.01, 0.99 - 1.0, 0.0)}
    assert no_worse("SA", "x", exact, 0.01).status == "shown"


def test_points_are_written_with_their_sign():
    assert in_points(spread(-0.012, 0.003, 0.02)) == "+0.3 [−1.2, +2.0]"
    assert signed(-0.0001) == "0.0" == signed(0.0)


def test_evidence_names_the_lowest_point():
    found = {
        OperatingPoint(1.0, 0.0): spread(-0.1, 0.0, 0.1),
        OperatingPoint(1.0, 0.3): spread(-0.2, -0.05, 0.1),
    }
    claim = no_worse("SA", "the dedicated networks'", found, 0.01)
    assert claim.status == "not seen" and "λ=0, 0.3" in claim.text
    assert claim.evidence.endswith("lowest −5.0 [−20.0, +10.0] at 1@0.3")
