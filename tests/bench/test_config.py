from __future__ import annotations

import json

import pytest

from oat_edge.bench.config import BenchConfig
from oat_edge.errors import InputError


def test_defaults_are_those_of_the_design():
    config = BenchConfig()
    assert (config.min_seconds, config.min_iterations) == (10.0, 1000)
    assert (config.warmup_min_s, config.warmup_cap_s) == (0.5, 10.0)
    assert (config.windows, config.agree) == (3, 0.02)
    quick = BenchConfig.quick()
    assert (quick.min_seconds, quick.min_iterations) == (1.0, 100)


def test_quick_takes_changes():
    assert BenchConfig.quick(batches=(2,), min_seconds=5.0).min_seconds == 5.0
    assert BenchConfig.quick(batches=(2,)).batches == (2,)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"device": "tpu"}, "device is 'tpu'.*cpu, cuda, jetson"),
        ({"batches": ()}, "batches"),
        ({"batches": (0, 1)}, "batches"),
        ({"batches": (16, 1)}, "batches"),
        ({"batches": (1, 1)}, "batches"),
        ({"min_seconds": -1.0}, "min_seconds"),
        ({"min_seconds": float("nan")}, "min_seconds"),
        ({"min_iterations": 0}, "min_iterations"),
        ({"rounds": 2}, "rounds"),
        ({"windows": 1}, "windows"),
        ({"threads": 0}, "threads"),
        ({"throughput_workers": 0}, "throughput_workers"),
        ({"throughput_seconds": -0.1}, "throughput_seconds"),
        ({"warmup_cap_s": 0.1}, "warmup_cap_s"),
        ({"agree": 2.0}, "agree"),
        ({"accuracy_batch": 0}, "accuracy_batch"),
        ({"seed": -1}, "seed"),
        ({"attacks": ("pgd",)}, "attack is 'pgd': expected one or more of pack,square"),
        ({"attacks": ()}, "attacks are ''"),
        ({"attacks": ("pack", "pack")}, "attacks are 'pack,pack'"),
        ({"queries": 0}, "queries is 0"),
        ({"profile_runs": 0}, "profile_runs is 0"),
    ],
)
def test_bad_values_are_named(change, match):
    with pytest.raises(InputError, match=match):
        BenchConfig(**change)


def test_to_json_is_plain():
    value = json.loads(json.dumps(BenchConfig().to_json()))
    assert value["batches"] == [1, 16] and value["threads"] is None
