"""`oat-edge eval BUNDLE` without its command line: packs replayed, and Square on the files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from oat_edge.errors import InputError
from oat_edge.evaluation.checks import TOO_WEAK
from oat_edge.evaluation.config import ATTACKS
from oat_edge.evaluation.report import REPORT, SAMPLES, EvalReport, row_name
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime import open_artifact
from tests.bench.conftest import KNOTS, make_bundle, make_pack
from tests.evaluation.bundles import (
    evaluate,
    packs_of,
    right_by_hand,
    with_pack,
)


def test_what_is_reported_is_what_replaying_by_hand_gives(bundle):
    evaluation = evaluate(bundle, attacks=("pgd20",))
    packs = packs_of(bundle)
    rows = {(row.artifact, row.lam): row for row in evaluation.report.rows}
    assert len(rows) == 2 * 3 + 1
    for artifact in bundle.of_format("onnx"):
        with open_artifact(bundle, artifact) as runner:
            lambdas = KNOTS if artifact.pinned_lambda is None else (artifact.pinned_lambda,)
            for lam in lambdas:
                row = rows[artifact.file, lam]
                pack = packs["pgd20", artifact.width]
                clean = right_by_hand(runner, lam, pack.images, pack.labels)
                own = right_by_hand(
                    runner, lam, pack.adversarial[pack.lambdas.index(lam)], pack.labels
                )
                elsewhere = [
                    right_by_hand(runner, lam, other.adversarial[i], other.labels)
                    for (attack, width), other in packs.items()
                    for i, source in enumerate(other.lambdas)
                    if attack == "pgd20" and (width, source) != (artifact.width, lam)
                ]
                assert len(elsewhere) == 5
                transfer = np.logical_and.reduce([clean, *elsewhere])
                assert row.standard_accuracy == clean.mean()
                assert row.robust_accuracy == {
                    "pgd20": (clean & own).mean(),
                    "transfer": transfer.mean(),
                    "worst": (transfer & own).mean(),
                }
                assert row.pinned == (artifact.pinned_lambda is not None)
                assert (row.sha256, row.width) == (artifact.sha256, artifact.width)
                assert row.backend == runner.backend and row.num_samples == 12


def test_the_samples_reproduce_the_report_and_it_comes_back(bundle, tmp_path):
    evaluation = evaluate(bundle, attacks=("pgd20", "square"))
    saved = evaluation.save(tmp_path / "out")
    assert EvalReport.load(tmp_path / "out" / REPORT) == saved
    with np.load(tmp_path / "out" / SAMPLES) as file:
        for row in saved.rows:
            name = row_name(row.artifact, OperatingPoint(row.width, row.lam))
            assert file[f"{name}|clean"].mean() == row.standard_accuracy
            for attack, share in row.robust_accuracy.items():
                assert file[f"{name}|{attack}"].mean() == share


def test_square_alone_names_no_other_attack(bundle):
    report = evaluate(bundle, attacks=("square",), lambdas=(0.0, 0.5)).report
    assert "pgd20" not in report.settings["mode"] and report.transfer == ()
    for row in report.rows:
        assert list(row.robust_accuracy) == ["square", "worst"]
        assert row.robust_accuracy["worst"] == row.robust_accuracy["square"]
    assert {row.lam for row in report.rows} == {0.0, 0.5, 0.3}


def checks_of(row):
    return {check.name: check for check in row.checks}


def test_what_needs_gradients_is_said_to_be_unchecked(bundle):
    for row in evaluate(bundle, attacks=("pgd20", "square")).report.rows:
        checks = checks_of(row)
        assert checks.pop("randomised output").flagged is False
        square = checks.pop("square")
        assert (
            square.flagged is None and "needs 50 images or more, there were 12" in square.evidence
        )
        assert set(checks) == {"zero gradient", "single step", "restarts", "growing ε"}
        assert {check.flagged for check in checks.values()} == {None}


def with_many(bundle, num):
    """The same with packs of more images: noise, which fools far less than Square does."""
    for attack, width in packs_of(bundle):
        bundle = with_pack(bundle, make_pack(width, attack, num=num))
    return bundle


def test_square_above_the_packs_is_a_weak_attack_or_a_sign_of_masking(bundle):
    """PGD-20 alone may be too weak; with APGD's images there too, Square should find nothing."""
    many = with_many(bundle, 250)
    alone = evaluate(many, attacks=("pgd20", "square"), num_queries=200).report
    for row in alone.rows:
        square = checks_of(row)["square"]
        assert row.robust_accuracy["square"] < row.robust_accuracy["pgd20"] - 0.02
        assert square.flagged is None and square.evidence.endswith(TOO_WEAK)
        assert "under the replayed pgd20;" in square.evidence
        assert row.status == "ok"
    half = {"widths": (0.5,), "num_queries": 200}
    both = evaluate(many, attacks=("pgd20", "apgd", "square"), **half).report
    for row in both.rows:
        square = checks_of(row)["square"]
        assert square.flagged is True and "the replayed pgd20 and apgd;" in square.evidence
        assert row.status == "suspect"
    few = evaluate(many, attacks=("pgd20", "apgd", "square"), widths=(0.5,), num_queries=1).report
    for row in few.rows:
        assert checks_of(row)["square"].flagged is False and row.status == "ok"


def test_progress_grows_to_the_total(bundle):
    told = []
    evaluate(bundle, attacks=("pgd20", "square"), progress=lambda *call: told.append(call))
    done, totals, _ = zip(*told, strict=True)
    assert done[0] == 0 and list(done) == sorted(done)
    assert done[-1] == pytest.approx(totals[-1]) and max(done) <= totals[-1]


def test_without_packs_there_is_nothing_to_replay(tmp_path):
    bare = make_bundle(tmp_path / "bare", packs=False)
    with pytest.raises(InputError, match=r"has no attack packs.*oat-edge export"):
        evaluate(bare)


def test_a_damaged_pack_or_file_is_refused(bundle):
    for artifact in bundle.artifacts:
        path = bundle.path / artifact.file
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(InputError, match="is damaged"):
            evaluate(bundle, num_queries=1)
        path.write_bytes(content)


def test_two_packs_of_every_width_give_two_grids_and_one_worst_case(bundle):
    both = with_pack(bundle, make_pack(1.0, "apgd"))
    report = evaluate(both, num_queries=5).report
    assert [text.partition(":")[0] for text in report.warnings] == ["autoattack"]
    assert {grid.attack for grid in report.transfer} == {"pgd20", "apgd"}
    assert set(report.settings["attacks"]) == {"pgd20", "apgd", "square"} < set(ATTACKS)
    for row in report.rows:
        assert row.robust_accuracy["worst"] == min(row.robust_accuracy.values())
        assert list(row.robust_accuracy)[-2:] == ["transfer", "worst"]


def test_a_file_pinned_where_no_pack_is_stays_out_and_alone_is_refused(bundle):
    pinned = [
        dataclasses.replace(artifact, pinned_lambda=0.25) if artifact.pinned_lambda else artifact
        for artifact in bundle.artifacts
    ]
    other = dataclasses.replace(bundle, artifacts=tuple(pinned))
    report = evaluate(other, attacks=("pgd20",)).report
    assert any("left out, no attack pack holds λ=0.25" in text for text in report.warnings)
    assert not any(row.pinned for row in report.rows)
    alone = dataclasses.replace(
        bundle, artifacts=tuple(a for a in pinned if a.format != "onnx" or a.pinned_lambda)
    )
    with pytest.raises(InputError, match="has nothing that can be evaluated"):
        evaluate(alone, widths=(0.5,), attacks=("pgd20",))
