"""What latency samples can carry: percentiles, stability, and whether λ changes the latency.

n samples, K values of λ
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

NS_PER_MS = 1e6
# MLPerf loadgen's early stopping: below these n, no 99 % confidence bound on a percentile exists.
MIN_SAMPLES = {90: 64, 95: 130, 99: 662}
# trtexec calls a measurement unstable above this coefficient of variation.
UNSTABLE_CV = 0.025
# A difference between λ matters if it is larger than this and not chance.
FLAT_SPREAD = 0.02
FLAT_P_VALUE = 0.01
NUM_PERMUTATIONS = 499
MAX_CYCLES = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyMs:
    """Summary of latency samples in milliseconds; null is what n samples cannot carry."""

    mean: float
    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    min: float
    max: float
    cv: float | None
    """Standard deviation over mean; None below two samples."""
    n: int

    @classmethod
    def from_ns(cls, latency_ns: Int64) -> LatencyMs:
        """Summarise one or more samples, in nanoseconds."""
        return cls.from_ms(latency_ns / NS_PER_MS)

    @classmethod
    def from_ms(cls, ms: Float64) -> LatencyMs:
        """Summarise one or more samples, in milliseconds."""
        mean = float(ms.mean())
        return cls(
            mean=mean,
            p50=float(np.median(ms)),
            p90=percentile(ms, 90),
            p95=percentile(ms, 95),
            p99=percentile(ms, 99),
            min=float(ms.min()),
            max=float(ms.max()),
            cv=float(ms.std()) / mean if len(ms) > 1 and mean > 0 else None,
            n=len(ms),
        )

    @property
    def stable(self) -> bool:
        """Whether the coefficient of variation is known and small enough."""
        return self.cv is not None and self.cv <= UNSTABLE_CV

    def warnings(self) -> list[str]:
        """Why a figure is null, and why the row is unstable."""
        found = [
            f"latency_ms.p{q}: {self.n} samples, needs {least}"
            for q, least in MIN_SAMPLES.items()
            if self.n < least
        ]
        if self.cv is None:
            found.append("latency_ms.cv: needs two samples or more")
        elif not self.stable:
            found.append(
                f"unstable: CV {self.cv:.1%} is above {UNSTABLE_CV:.1%}; "
                "stop other programs and fix the clocks"
            )
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceMs:
    """Where a request's time goes on the device, by its own events, in milliseconds."""

    h2d: LatencyMs
    """Image and λ to the device."""
    compute: LatencyMs
    d2h: LatencyMs
    """Logits to the host."""

    @classmethod
    def from_samples(cls, device_ms: Float64) -> DeviceMs:
        """Summarise samples (n, 3)."""
        h2d, compute, d2h = (LatencyMs.from_ms(column) for column in device_ms.T)
        return cls(h2d=h2d, compute=compute, d2h=d2h)


def percentile(samples: npt.NDArray[np.floating], q: int) -> float | None:
    """q-th percentile with linear interpolation between order statistics (numpy's "linear",

    Hyndman & Fan type 7); None if there are too few samples for it to mean anything.
    """
    if len(samples) < MIN_SAMPLES.get(q, 1):
        return None
    return float(np.percentile(samples, q, method="linear"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Whether λ changes the latency, on the recorded samples."""

    p50_ms: tuple[float, ...]
    """(K,) median latency of each λ."""
    max_relative_spread: float
    """(largest − smallest median) / smallest median."""
    p_value: float
    """Chance of a spread this large if λ changed nothing."""
    num_samples: int
    """Samples of the medians; the permutation test takes at most MAX_CYCLES rounds of λ."""

    @property
    def flat(self) -> bool:
        """False only if the spread is both too large to ignore and not chance."""
        return self.max_relative_spread <= FLAT_SPREAD or self.p_value >= FLAT_P_VALUE


def lambda_spread(latency_ns: Int64, lambda_index: Int64, *, seed: int) -> Spread | None:
    """Compare the medians of the λ values; None if fewer than two λ or two rounds were run.

    Samples come in rounds of all K values of λ (index 0, 1, … K−1, 0, …), as latency mode takes
    them. The permutation test shuffles λ *within* a round only: neighbours in time share the
    state of the machine, so a drift is not mistaken for an effect of λ.
    """
    num_lambdas = int(lambda_index.max(initial=0)) + 1
    cycles = len(latency_ns) // num_lambdas
    if num_lambdas < 2 or cycles < 2:
        return None
    if not np.array_equal(lambda_index, np.arange(len(lambda_index)) % num_lambdas):
        raise ValueError("lambda_index does not go round the values of λ")
    table = latency_ns[: cycles * num_lambdas].reshape(cycles, num_lambdas) / NS_PER_MS
    medians = np.median(table, axis=0)
    return Spread(
        p50_ms=tuple(float(median) for median in medians),
        max_relative_spread=float(np.ptp(medians) / max(medians.min(), 1e-9)),
        p_value=_permutation_p_value(table, seed),
        num_samples=table.size,
    )


def _permutation_p_value(table: Float64, seed: int) -> float:
    """Share of permutations whose medians spread at least as far.  table: (cycles, K)."""
    rng = np.random.default_rng(seed)
    if len(table) > MAX_CYCLES:  # bounds the cost; evenly spaced, so the whole run is covered
        table = table[np.linspace(0, len(table) - 1, MAX_CYCLES).astype(np.int64)]
    observed = np.ptp(np.median(table, axis=0))
    keys = rng.random((NUM_PERMUTATIONS, *table.shape), dtype=np.float32)
    shuffled = np.take_along_axis(table[None], keys.argsort(axis=2), axis=2)
    spreads = np.ptp(np.median(shuffled, axis=1), axis=1)
    return float((1 + (spreads >= observed).sum()) / (1 + NUM_PERMUTATIONS))
