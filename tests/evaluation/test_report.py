from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.bench.environment import collect
from oat_edge.bench.report import BundleId
from oat_edge.errors import InputError
from oat_edge.evaluation.accuracy import wilson_interval
from oat_edge.evaluation.checks import Check
from oat_edge.evaluation.outcome import Outcome
from oat_edge.evaluation.report import (
    REPORT,
    SAMPLES,
    SCHEMA,
    EvalReport,
    Evaluation,
    Subject,
    make_row,
    row_name,
)
from oat_edge.evaluation.transfer import transfer_grids
from oat_edge.files import write_json
from oat_edge.operating_point import OperatingPoint

POINTS = [OperatingPoint(width, lam) for width in (0.5, 1.0) for lam in (0.0, 0.3, 1.0)]
SUBJECT = Subject(
    artifact="w.onnx", sha256="f" * 64, format="onnx", backend="ort-cpu", precision="fp32"
)
CHECKS = [
    Check(name="randomised output", flagged=False, evidence="none"),
    Check(name="square", flagged=None, evidence="was not run"),
]


def outcome(seed, n=17):
    rng = np.random.default_rng(seed)
    draw = lambda: rng.random(n) < 0.8  # noqa: E731
    attacked = {name: draw() for name in ("pgd20", "apgd", "square")}
    transferred = {("apgd", point): draw() for point in POINTS[1:]}
    return Outcome(clean=draw(), attacked=attacked, transferred=transferred)


def evaluation(n=17, points=POINTS):
    outcomes = {point: outcome(i, n) for i, point in enumerate(points)}
    rows = tuple(
        make_row(SUBJECT, point, one, CHECKS, seconds={"square": 1.23456}, warnings=("w",))
        for point, one in outcomes.items()
    )
    report = EvalReport(
        environment=collect(),
        settings={"eps": 8 / 255, "seed": 0, "mode": "fast", "num_samples": n},
        bundle=BundleId(run="run", checkpoint_sha256="c" * 64),
        rows=rows,
        transfer=transfer_grids(outcomes),
        samples_file=None,
        warnings=("a warning",),
    )
    return Evaluation(
        report=report,
        indices=np.arange(n),
        labels=np.zeros(n, dtype=np.int64),
        outcomes={row_name(SUBJECT.artifact, point): one for point, one in outcomes.items()},
    )


@given(seed=st.integers(0, 999), n=st.integers(1, 40))
@settings(max_examples=40)
def test_a_row_is_counts_over_images_with_wilsons_intervals(seed, n):
    one = outcome(seed, n)
    row = make_row(SUBJECT, POINTS[0], one, [], seconds={})
    assert row.num_samples == n and row.standard_accuracy == one.clean.mean()
    assert list(row.robust_accuracy) == ["pgd20", "apgd", "square", "transfer", "worst"]
    assert set(row.robust_accuracy_interval) == set(row.robust_accuracy)
    for name, share in row.robust_accuracy.items():
        right = one.robust[name]
        assert share == right.mean() <= row.standard_accuracy
        assert row.robust_accuracy["worst"] <= share
        low, high = row.robust_accuracy_interval[name]
        assert 0 <= low <= share <= high <= 1 and low < high
        assert (low, high) == wilson_interval(int(right.sum()), n)
    low, high = row.standard_accuracy_interval
    assert low <= row.standard_accuracy <= high


@pytest.mark.parametrize(
    ("flags", "status"),
    [([], "ok"), ([False], "ok"), ([None, False], "ok"), ([None, True], "suspect")],
)
def test_one_flag_makes_a_row_suspect_and_a_check_that_was_not_made_does_not(flags, status):
    checks = [Check(name=str(i), flagged=flag, evidence="") for i, flag in enumerate(flags)]
    assert make_row(SUBJECT, POINTS[0], outcome(0), checks, seconds={}).status == status


def test_a_report_comes_back_from_its_file_equal(tmp_path):
    saved = evaluation().save(tmp_path)
    assert saved.samples_file == SAMPLES
    assert EvalReport.load(tmp_path / REPORT) == saved
    assert sorted(path.name for path in tmp_path.iterdir()) == [SAMPLES, REPORT]


def test_the_json_has_the_fields_of_the_design_and_no_nan(tmp_path):
    evaluation().save(tmp_path)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    value = json.loads((tmp_path / REPORT).read_text(), parse_constant=refuse)
    assert value["schema"] == SCHEMA == "oat-edge/eval/1"
    assert {"environment", "settings", "bundle", "rows", "transfer", "warnings"} < set(value)
    for row in value["rows"]:
        design = {
            "artifact", "sha256", "format", "backend", "width", "lambda", "precision",
            "standard_accuracy", "robust_accuracy", "num_samples", "status", "warnings",
        }  # fmt: skip
        assert design < set(row) and "lam" not in row
        assert {"standard_accuracy_interval", "robust_accuracy_interval", "checks"} < set(row)
        assert "worst" in row["robust_accuracy"]
    assert len({(row["width"], row["lambda"]) for row in value["rows"]}) == len(POINTS)
    assert all(0 <= x <= 1 for row in value["transfer"][0]["robust_accuracy"] for x in row if x)


def test_nan_is_refused_and_leaves_no_file(tmp_path):
    whole = evaluation()
    bad = replace(whole, report=replace(whole.report, settings={"eps": float("nan")}))
    with pytest.raises(ValueError, match="cannot hold nan"):
        bad.save(tmp_path)
    assert not (tmp_path / REPORT).exists()


def test_the_samples_reproduce_every_figure_of_the_report(tmp_path):
    whole = evaluation()
    report = whole.save(tmp_path)
    with np.load(tmp_path / SAMPLES, allow_pickle=False) as file:
        samples = dict(file)
    assert np.array_equal(samples.pop("indices"), whole.indices)
    assert np.array_equal(samples.pop("labels"), whole.labels)
    for row in report.rows:
        name = row_name(row.artifact, row.point)
        clean = samples.pop(f"{name}|clean")
        assert clean.dtype == bool and clean.mean() == row.standard_accuracy
        for attack, share in row.robust_accuracy.items():
            assert samples.pop(f"{name}|{attack}").mean() == share
    assert samples == {}


def test_rows_of_points_that_look_alike_keep_their_own_samples(tmp_path):
    points = [OperatingPoint(1.0, lam) for lam in (1 / 3, 0.3333333, 0.33333334)]
    evaluation(points=points).save(tmp_path)
    with np.load(tmp_path / SAMPLES) as file:
        assert len([name for name in file.files if name.endswith("|clean")]) == 3


def damaged():
    def change(value, place, new):
        *path, last = place
        for key in path:
            value = value[key]
        if new is None:
            del value[last]
        else:
            value[last] = new

    return {
        "schema": (lambda v: change(v, ["schema"], "oat-edge/bench/1"), "expected 'oat-edge/eval"),
        "rows": (lambda v: change(v, ["rows"], None), r"lacks \['rows'\]"),
        "sha": (lambda v: change(v, ["rows", 0, "sha256"], 5), r"rows\[0\].sha256 is 5"),
        "status": (lambda v: change(v, ["rows", 1, "status"], "fine"), r"rows\[1\].status"),
        "extra": (lambda v: change(v, ["bundle", "more"], 1), r"unknown \['more'\]"),
        "check": (lambda v: change(v, ["rows", 0, "checks", 0, "flagged"], "no"), "flagged"),
    }


@pytest.mark.parametrize("kind", damaged())
def test_a_damaged_report_is_one_line_that_names_the_place(kind, tmp_path):
    evaluation().save(tmp_path)
    value = json.loads((tmp_path / REPORT).read_text())
    damage, pattern = damaged()[kind]
    damage(value)
    write_json(tmp_path / REPORT, value)
    with pytest.raises(InputError, match=pattern) as caught:
        EvalReport.load(tmp_path / REPORT)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="there is no evaluation report"):
        EvalReport.load(tmp_path / "nothing.json")
