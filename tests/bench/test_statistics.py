from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.bench.statistics import MIN_SAMPLES, LatencyMs, lambda_spread, percentile

samples_ns = st.lists(st.integers(1, 10**12), min_size=1, max_size=800).map(np.array)


@settings(max_examples=60, deadline=None)
@given(samples_ns)
def test_figures_are_ordered_and_within_the_samples(latency_ns):
    figures = LatencyMs.from_ns(latency_ns)
    known = [figures.min, figures.p50, figures.p90, figures.p95, figures.p99, figures.max]
    known = [value for value in known if value is not None]
    assert all(a <= b * (1 + 1e-12) for a, b in zip(known, known[1:]))  # noqa: B905, RUF007
    assert figures.min == latency_ns.min() / 1e6 and figures.max == latency_ns.max() / 1e6
    assert figures.min * (1 - 1e-12) <= figures.mean <= figures.max * (1 + 1e-12)
    assert figures.n == len(latency_ns)


@pytest.mark.parametrize(("q", "least"), [(90, 64), (95, 130), (99, 662)])
def test_percentiles_need_their_number_of_samples(q, least):
    name = f"p{q}"
    enough, short = (LatencyMs.from_ns(np.arange(1, n + 1) * 10**6) for n in (least, least - 1))
    assert getattr(enough, name) is not None and getattr(short, name) is None
    assert any(name in text and str(least) in text for text in short.warnings())
    assert not any(name in text for text in enough.warnings())


def test_percentile_interpolates_linearly():
    # 101 samples 0, 1, … 100: the q-th percentile is q.
    assert percentile(np.arange(101.0), 90) == pytest.approx(90)
    # 65 samples 0 … 64: 0.9 * 64.
    assert percentile(np.arange(65.0), 90) == pytest.approx(57.6)
    assert MIN_SAMPLES == {90: 64, 95: 130, 99: 662}  # DESIGN, section 5


@pytest.mark.parametrize(("spread", "stable"), [(0.024, True), (0.026, False)])
def test_instability_is_a_cv_above_two_and_a_half_percent(spread, stable):
    latency_ns = np.tile([10_000_000 * (1 - spread), 10_000_000 * (1 + spread)], 500)
    figures = LatencyMs.from_ns(latency_ns.astype(np.int64))
    assert figures.cv == pytest.approx(spread, rel=1e-6)
    assert figures.stable is stable
    assert any("unstable" in text for text in figures.warnings()) is not stable


def test_one_sample_has_no_cv_and_is_not_called_stable():
    figures = LatencyMs.from_ns(np.array([5_000_000]))
    assert figures.cv is None and not figures.stable
    assert any("cv" in text for text in figures.warnings())


def noisy(effect: float, *, cycles: int = 400, num_lambdas: int = 4, drift: float = 0.0, seed=0):
    """Latencies of 1 ms with 1 % noise; the last λ costs `effect` more; a linear drift."""
    rng = np.random.default_rng(seed)
    lambda_index = np.arange(cycles * num_lambdas) % num_lambdas
    factor = 1 + effect * (lambda_index == num_lambdas - 1)
    factor = factor * np.linspace(1, 1 + drift, len(lambda_index))
    latency = 1e6 * factor * rng.normal(1, 0.01, len(lambda_index))
    return latency.round().astype(np.int64), lambda_index


def test_an_effect_of_lambda_is_found_and_measured():
    spread = lambda_spread(*noisy(0.05), seed=0)
    assert spread.max_relative_spread == pytest.approx(0.05, abs=0.005)
    assert spread.p_value < 0.01 and not spread.flat


def test_a_drift_is_not_taken_for_an_effect_of_lambda():
    """40 % drift over the run, no effect: a test that ignored time would see noise only; a
    5 % effect under the same drift is still found, for λ is shuffled within rounds."""
    assert lambda_spread(*noisy(0.0, drift=0.4), seed=0).flat
    assert lambda_spread(*noisy(0.05, drift=0.4), seed=0).p_value < 0.01


def test_p_values_without_an_effect_are_spread_evenly():
    p_values = [lambda_spread(*noisy(0.0, cycles=60, seed=i), seed=i).p_value for i in range(60)]
    assert all(0 < p <= 1 for p in p_values)
    assert 0.3 < np.mean(p_values) < 0.7
    assert sum(p < 0.05 for p in p_values) <= 9  # 3 expected


def test_a_real_but_negligible_effect_counts_as_flat():
    spread = lambda_spread(*noisy(0.01, cycles=2000), seed=0)
    assert spread.p_value < 0.01 and spread.max_relative_spread < 0.02 and spread.flat


def test_equal_latencies_are_flat_with_p_one():
    spread = lambda_spread(np.full(60, 7), np.arange(60) % 3, seed=0)
    assert (spread.max_relative_spread, spread.p_value, spread.flat) == (0.0, 1.0, True)


def test_medians_are_those_of_each_lambda_over_all_whole_rounds():
    latency_ns, lambda_index = noisy(0.1, cycles=700)
    latency_ns, lambda_index = latency_ns[:-1], lambda_index[:-1]  # the last round is cut short
    spread = lambda_spread(latency_ns, lambda_index, seed=0)
    whole = latency_ns[: 699 * 4].reshape(-1, 4)
    assert spread.p50_ms == pytest.approx(np.median(whole, axis=0) / 1e6)
    assert spread.num_samples == whole.size


def test_same_seed_same_p_value():
    a, b = (lambda_spread(*noisy(0.005), seed=3) for _ in range(2))
    assert a == b


@pytest.mark.parametrize("index", [[0, 0, 0], [0, 1, 2]])
def test_one_lambda_or_one_round_says_nothing(index):
    assert lambda_spread(np.arange(1, 4), np.array(index), seed=0) is None


def test_samples_out_of_order_are_refused():
    with pytest.raises(ValueError, match="go round"):
        lambda_spread(np.arange(1, 5), np.array([0, 1, 1, 0]), seed=0)
