from __future__ import annotations

from oat_edge.bench.latency import NS
from oat_edge.bench.progress import Stages


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
