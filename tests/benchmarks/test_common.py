from __future__ import annotations

import pytest

from benchmarks.common import interleaved, ratio


def test_candidates_take_turns_and_every_call_is_kept() -> None:
    order: list[str] = []
    candidates = {name: (lambda n=name: order.append(n)) for name in "abc"}
    samples = interleaved(candidates, rounds=3, calls=2)
    assert {name: len(values) for name, values in samples.items()} == {"a": 6, "b": 6, "c": 6}
    # One unrecorded call and two recorded ones each; the order turns from round to round.
    assert "".join(order) == "aaabbbccc" + "bbbcccaaa" + "cccaaabbb"


def test_ratio_is_of_medians_and_robust_to_one_slow_call() -> None:
    samples = {"slow": [3.0, 3.0, 90.0, 3.0, 3.0, 3.0], "fast": [2.0] * 6}
    value = ratio(samples, "slow", "fast", calls=2)
    assert value["ratio"] == pytest.approx(1.5)
    assert value["ratio_per_round_median"] == pytest.approx(1.5)
    assert value["num_rounds"] == 3
