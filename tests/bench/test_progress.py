from __future__ import annotations

import pytest

from oat_edge.bench.latency import NS
from oat_edge.bench.progress import ImageCount, Stages


def test_total_is_time_spent_plus_this_stage_plus_coming_guesses():
    now_s, reports = 0.0, []
    stages = Stages(
        lambda *call: reports.append(call), [10.0, 5.0, 2.0], clock=lambda: round(now_s * NS)
    )
    inner = stages.begin("first")
    assert reports[-1] == (0.0, 17.0, "first")
    now_s = 4.0
    inner(4.0, 12.0, "first, half")  # the stage now expects 8 s more, not 6
    assert reports[-1] == (4.0, 4.0 + 8.0 + 7.0, "first, half")
    now_s = 11.0
    stages.begin("second")
    assert reports[-1] == (11.0, 11.0 + 5.0 + 2.0, "second")
    stages.finish()
    assert reports[-1] == (11.0, 11.0, "done")


def test_without_a_listener_nothing_happens():
    stages = Stages(None, [1.0])
    stages.begin("only")(0.5, 1.0, "x")
    stages.finish()


def test_images_to_come_take_as_long_as_those_so_far():
    now_s, reports = 0.0, []
    count = ImageCount(
        lambda *call: reports.append(call), "accuracy", left=100, clock=lambda: round(now_s * NS)
    )
    now_s = 2.0
    count.show(20)
    assert reports[-1] == (2.0, 10.0, "accuracy")
    count.left = 10  # fewer than was thought
    now_s = 3.0
    count.show(5)
    assert reports[-1] == (3.0, pytest.approx(3.0 + 5 * 3.0 / 25), "accuracy")
    assert count.shown == 25
    now_s = 4.0
    count.show(50)  # more than was thought
    assert reports[-1] == (4.0, 4.0, "accuracy") and count.left == 0
