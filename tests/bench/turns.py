"""Sources of turns on a clock that only requests move on."""

from __future__ import annotations

from oat_edge.bench.config import BenchConfig
from oat_edge.bench.latency import LatencySamples, Measurable, measure_part, warm_up
from oat_edge.bench.turns import take_turns


class FakeTime:
    """A clock that only requests move on; remembers every request."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.calls: list[tuple[str, int]] = []

    def __call__(self) -> int:
        return self.now_ns

    def measurable(self, name, cost_ns, num_lambdas=1, device_times=None) -> Measurable:
        """cost_ns: int, or a function of (number of the call, λ index)."""
        num_calls = 0

        def call(lambda_index: int) -> None:
            nonlocal num_calls
            self.calls.append((name, lambda_index))
            self.now_ns += cost_ns if isinstance(cost_ns, int) else cost_ns(num_calls, lambda_index)
            num_calls += 1

        return Measurable(name=name, call=call, num_lambdas=num_lambdas, device_times=device_times)


def config(**changes):
    plain = {
        "min_seconds": 1.0,
        "min_iterations": 100,
        "rounds": 4,
        "warmup_min_s": 0.5,
        "warmup_cap_s": 10.0,
        "rewarm_s": 0.0,
    }
    return BenchConfig(**{**plain, **changes})


class Local:
    """A measurable of this process as a source of turns."""

    def __init__(self, measurable, config, clock):
        self.name, self.num_lambdas = measurable.name, measurable.num_lambdas
        self._measurable, self._config, self._clock = measurable, config, clock

    def warm_up(self):
        return warm_up(self._measurable, self._config, clock=self._clock)

    def part(self, first):
        return measure_part(self._measurable, first, self._config, clock=self._clock)


def measure(measurables, config, *, clock, **options) -> list[LatencySamples]:
    """Warm up and record all of them in turns."""
    sources = [Local(measurable, config, clock) for measurable in measurables]
    return list(take_turns(sources, config, clock=clock, **options).values())
