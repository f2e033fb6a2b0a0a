from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.calib.choose import choose
from oat_edge.calib.decision import decided, missed
from oat_edge.calib.goal import Goal
from oat_edge.calib.operating_point_file import OperatingPointFile
from oat_edge.calib.reports import Measured, Source
from oat_edge.errors import GoalError, InputError
from tests.bench.made_up import make_report
from tests.calib.points import goals, point, points, pools


def measured_of(pool, path="reports/report.json"):
    source = Source(path=path, sha256="b" * 64, name="orin", report=make_report())
    return Measured(sources=(source,), points=tuple(pool), num_failed=0, num_pinned=0, warnings=())


@pytest.fixture
def chosen():
    pool = [point(lam=lam, robust_accuracy=0.4 + lam / 10) for lam in (0.0, 0.3, 1.0)]
    goal = Goal(min_robust=0.42, max_latency_ms=5)
    return decided(choose(pool, goal), pool, goal, measured_of(pool))


@settings(max_examples=100, deadline=None)
@given(pool=st.lists(points, min_size=1, max_size=8), goal=goals)
def test_what_was_decided_comes_back_from_json_as_it_was(pool, goal):
    best = choose(pool, goal)
    if best is None:
        return
    file = decided(best, pool, goal, measured_of(pool))
    text = json.dumps(file.to_json(), allow_nan=False)
    assert OperatingPointFile.from_json(json.loads(text)) == file
    assert (file.artifact, file.width, file.lam) == (best.artifact, best.width, best.lam)
    assert set(file.margins) == {limit.figure for limit in goal.limits}
    assert all(margin is not None and margin >= 0 for margin in file.margins.values())


def test_a_file_comes_back_and_says_what_the_design_asks_for(chosen, tmp_path):
    path = tmp_path / "deep" / "operating_point.json"
    chosen.save(path)
    assert OperatingPointFile.load(path) == chosen
    value = json.loads(path.read_text())
    assert value["schema"] == "oat-edge/operating-point/1" and value["lambda"] == 1.0
    assert value["figures"]["robust_accuracy"] == 0.5
    low, high = value["figures"]["robust_accuracy_interval"]
    assert low < 0.5 < high
    assert value["sources"] == [
        {"file": "reports/report.json", "sha256": "b" * 64, "device": "orin (A CPU, performance)"}
    ]
    assert value["constraints"]["min_robust"] == 0.42 and value["threads"] is None
    assert value["margins"]["latency_ms"] == 4.0
    assert [one.name for one in path.parent.iterdir()] == ["operating_point.json"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_change_of_a_byte_that_changes_the_content_is_noticed(data):
    pool = [point(lam=0.3)]
    file = decided(pool[0], pool, Goal(), measured_of(pool))
    raw = json.dumps(file.to_json(), indent=2, ensure_ascii=False).encode()
    place = data.draw(st.integers(0, len(raw) - 1))
    byte = data.draw(st.integers(0, 255))
    changed = raw[:place] + bytes([byte]) + raw[place + 1 :]
    try:
        value = json.loads(changed)
    except ValueError:
        return
    if value == json.loads(raw):
        return
    with pytest.raises(InputError, match="calibrate"):
        OperatingPointFile.from_json(value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "oat-edge/operating-point/2"}'])
def test_what_is_no_operating_point_is_one_line(content, tmp_path):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(InputError, match="choose again with `oat-edge calibrate`"):
        OperatingPointFile.load(tmp_path / "p.json")
    with pytest.raises(InputError, match="there is no operating point at"):
        OperatingPointFile.load(tmp_path / "gone.json")


def test_a_field_that_is_missing_or_of_no_sense_is_refused(chosen):
    from oat_edge.calib.operating_point_file import _digest

    def resealed(**changes):
        content = {k: v for k, v in chosen.to_json().items() if k != "integrity"} | changes
        return {**content, "integrity": _digest(content)}

    assert OperatingPointFile.from_json(resealed()) == chosen
    for changes in ({"lambda": 1.5}, {"width": 0}, {"lambda": "1"}, {"more": 1},
                    {"runner_device": "tpu"}, {"threads": 1.5}):  # fmt: skip
        with pytest.raises(InputError):
            OperatingPointFile.from_json(resealed(**changes))


@pytest.mark.parametrize(
    ("facts", "goal", "part"),
    [
        ({"unstable": True}, {}, "its latency was unstable"),
        ({"robust_accuracy": 0.4}, {"min_robust": 0.4}, "RA meets 40.0 % only within its 95 %"),
        ({"between_knots": True, "lam": 0.7}, {}, "λ=0.7 lies between knots"),
    ],
)
def test_what_has_to_be_known_is_a_warning(facts, goal, part):
    pool = [point(**facts)]
    file = decided(pool[0], pool, Goal(**goal), measured_of(pool))
    (text,) = file.warnings
    assert part in text
    calm = [point(robust_accuracy=0.9)]
    assert decided(calm[0], calm, Goal(**goal), measured_of(calm)).warnings == ()


def test_figures_that_are_not_known_are_told():
    pool = [point(), point(lam=0.3, energy_mj=None)]
    file = decided(pool[0], pool, Goal(max_energy_mj=2), measured_of(pool))
    assert file.warnings == (
        "1 of 2 points have no energy: a figure that is not known meets no limit",
    )


@settings(max_examples=100, deadline=None)
@given(pool=pools, goal=goals)
def test_a_miss_names_every_limit_that_the_nearest_point_does_not_keep(pool, goal):
    if choose(pool, goal) is not None:
        return
    nearest, error = missed(pool, goal)
    text = str(error)
    assert isinstance(error, GoalError) and error.exit_code == 7 and "\n" not in text
    if not pool:
        assert nearest is None
        return
    assert f"nearest is {nearest.setting} fp32: " in text
    lacking = [limit for limit in goal.limits if not limit.met(nearest)]
    assert lacking and text.count("wanted") + text.count("is not known") == len(lacking)


def test_a_miss_says_by_how_much():
    pool = [point(robust_accuracy=0.36, latency_ms=6.0), point(lam=0.1, robust_accuracy=0.1)]
    nearest, error = missed(pool, Goal(min_robust=0.4, max_latency_ms=5, min_standard=0.5))
    assert nearest == pool[0]
    assert str(error) == (
        "no operating point meets the goal (no point meets the RA limit); nearest is 1@0 fp32: "
        "p50 latency 6 ms, wanted ≤ 5 ms: 1 ms too high; RA 36.0 %, wanted ≥ 40.0 %: 4.0 points "
        "too low (SA met); loosen that, or train and bench more"
    )
    both = [*pool, dataclasses.replace(pool[0], robust_accuracy=0.5)]
    assert "each limit can be met alone" in str(
        missed(both, Goal(min_robust=0.4, max_latency_ms=5))[1]
    )
