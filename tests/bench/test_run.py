from __future__ import annotations

import dataclasses
import functools
import itertools

import pytest

from oat_edge.attacks.square import square_attack
from oat_edge.bench.run import bench_bundle
from oat_edge.errors import InputError
from oat_edge.evaluation.outcome import classified_right, evaluate
from oat_edge.evaluation.pack import AttackPack
from oat_edge.evaluation.pack_set import PackSet
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime import open_artifact
from tests.bench.conftest import QUICKEST

pytestmark = pytest.mark.usefixtures("frozen_heap")


def test_one_row_per_artifact_lambda_and_batch(benched):
    rows = benched.report.rows
    points = [(row.artifact, row.lam, row.batch) for row in rows]
    knob_files = ("w0.50-fp32.onnx", "w1.00-fp32.onnx")
    expected = set(itertools.product(knob_files, (0.0, 0.5, 1.0), (1, 4)))
    expected |= {("w0.50-lam0.3-fp32.onnx", 0.3, batch) for batch in (1, 4)}
    assert set(points) == expected and len(points) == len(expected)
    hashes = {artifact.file: artifact.sha256 for artifact in benched.bundle.artifacts}
    assert all(row.sha256 == hashes[row.artifact] for row in rows)


def test_rows_that_differ_in_lambda_share_all_but_accuracy(benched):
    for artifact, batch in {(row.artifact, row.batch) for row in benched.report.rows}:
        rows = [r for r in benched.report.rows if (r.artifact, r.batch) == (artifact, batch)]
        assert len({row.latency_ms for row in rows}) == 1
        assert len({(row.throughput_ips, row.memory_mb) for row in rows}) == 1


def test_samples_are_raw_enough_and_behind_the_figures(benched):
    by_name = {one.name: one for one in benched.samples}
    for row in benched.report.rows:
        samples = by_name[f"{row.artifact} batch {row.batch}"]
        assert len(samples.latency_ns) == row.latency_ms.n >= benched.config.min_iterations
        assert row.latency_ms.max == samples.latency_ns.max() / 1e6
        num_lambdas = 1 if "lam0.3" in row.artifact else 3
        assert set(samples.lambda_index.tolist()) == set(range(num_lambdas))


def packs_of(bundle):
    packs = [AttackPack.load(bundle.path / pack.file) for pack in bundle.of_format("attacks")]
    return PackSet(packs, checkpoint_sha256=bundle.checkpoint_sha256, eps=bundle.spec.eps)


def test_accuracy_is_that_of_the_runner_on_the_packs(benched):
    packs = packs_of(benched.bundle)
    seen = set()
    for artifact in benched.bundle.of_format("onnx"):
        with open_artifact(benched.bundle, artifact) as runner:
            for row in benched.report.rows:
                if row.artifact != artifact.file or row.lam not in packs.lambdas(row.width):
                    continue
                point = OperatingPoint(row.width, row.lam)
                infer = functools.partial(runner.infer, lam=row.lam)
                accuracy = evaluate(infer, packs, point, transfer=True).accuracy()
                assert row.standard_accuracy == accuracy.standard_accuracy
                assert row.robust_accuracy == accuracy.robust_accuracy
                assert row.num_samples == 12
                seen |= accuracy.robust_accuracy.keys()
    assert seen == {"pgd20", "apgd", "transfer", "worst"}


def test_worst_is_no_better_than_any_figure_of_its_row_and_of_the_grids(benched, squared):
    for report in (benched.report, squared.report):
        grids = [
            (target, share)
            for grid in report.transfer
            for target, shares in zip(grid.targets, grid.robust_accuracy, strict=True)
            for share in shares
        ]
        for row in report.rows:
            if row.worst is not None:
                assert row.worst <= min(row.robust_accuracy.values()) <= row.standard_accuracy
                here = OperatingPoint(row.width, row.lam)
                assert all(row.worst <= share for target, share in grids if target == here)


def test_transfer_is_reported_for_each_attack_and_files_with_a_lambda_input(benched):
    grids = {grid.attack: grid for grid in benched.report.transfer}
    assert set(grids) == {"pgd20", "apgd"}
    every = tuple(OperatingPoint(width, lam) for width in (0.5, 1.0) for lam in (0.0, 0.3, 1.0))
    assert grids["pgd20"].sources == every and grids["apgd"].sources == every[:3]
    for grid in grids.values():  # λ = 0.3 has no row but for the pinned file, 0.5 has no pack
        assert grid.targets == tuple(point for point in every if point.lam != 0.3)
        assert grid.num_samples == 12
        for target, shares in zip(grid.targets, grid.robust_accuracy, strict=True):
            own = dict(zip(grid.sources, shares, strict=True)).get(target)
            for row in benched.report.knob_rows:
                if OperatingPoint(row.width, row.lam) == target:
                    assert row.robust_accuracy.get(grid.attack) == own


def test_transfer_can_be_left_out(bundle):
    config = dataclasses.replace(QUICKEST, transfer=False)
    report, _ = bench_bundle(bundle, config, widths=(1.0,), lambdas=(0.0, 1.0))
    assert report.transfer == ()
    assert {*report.rows[0].robust_accuracy} == {"pgd20", "worst"}


def test_rows_that_fewer_attacks_were_made_on_are_told(benched):
    for row in benched.report.rows:
        told = any("other rows were also attacked by apgd" in text for text in row.warnings)
        assert told == (row.width == 1.0 and row.worst is not None)


def test_square_attacks_the_engine_itself(squared):
    packs, config = packs_of(squared.bundle), squared.config
    some_fell = False
    for artifact in squared.bundle.of_format("onnx"):
        with open_artifact(squared.bundle, artifact) as runner:
            for row in squared.report.rows:
                if row.artifact != artifact.file:
                    continue
                infer = functools.partial(runner.infer, lam=row.lam)
                clean = classified_right(infer, packs.images, packs.labels, 12)
                found = square_attack(
                    infer,
                    packs.images[clean],
                    packs.labels[clean],
                    eps=squared.bundle.spec.eps,
                    num_queries=config.queries,
                    seed=config.seed,
                )
                assert row.standard_accuracy == clean.mean() and row.num_samples == 12
                assert row.robust_accuracy["square"] == found.right.sum() / 12
                some_fell |= row.robust_accuracy["square"] < row.standard_accuracy
    assert some_fell


def test_square_has_figures_where_no_pack_does_but_no_worst_case(squared):
    """Without an attack as strong as its neighbours' a λ must not look more robust than they."""
    rows = [row for row in squared.report.rows if row.lam == 0.5]
    assert len(rows) == 2
    for row in rows:
        assert set(row.robust_accuracy) == {"square", "transfer", "worst"}
        assert row.robust_accuracy["square"] is not None and row.standard_accuracy is not None
        assert row.worst is row.pareto is None
        assert any(text.startswith("robust_accuracy.worst, pareto:") for text in row.warnings)
    assert all(row.worst is not None for row in squared.report.rows if row.lam != 0.5)


def test_square_alone_compares_every_lambda(bundle):
    config = dataclasses.replace(QUICKEST, attacks=("square",), queries=10)
    report, _ = bench_bundle(bundle, config, widths=(1.0,), lambdas=(0.0, 0.5))
    for row in report.rows:
        assert set(row.robust_accuracy) == {"square", "worst"}
        assert row.worst == row.robust_accuracy["square"] and row.pareto is not None
    assert report.transfer == () and set(report.settings["attacks"]) == {"square"}


def test_square_needs_images(bare_bundle):
    config = dataclasses.replace(QUICKEST, attacks=("pack", "square"))
    calls = []
    with pytest.raises(InputError, match="oat-edge export --attack-samples") as error:
        bench_bundle(
            bare_bundle,
            config,
            widths=(1.0,),
            lambdas=(0.0,),
            progress=lambda *call: calls.append(call),
        )
    assert calls == [] and "\n" not in str(error.value)


def test_a_lambda_without_pack_has_null_accuracy_and_a_remedy(benched):
    rows = [row for row in benched.report.rows if row.lam == 0.5]
    assert len(rows) == 4
    for row in rows:
        assert (row.standard_accuracy, row.worst, row.num_samples, row.pareto) == (None,) * 4
        assert any("λ=0.5" in text and "0, 0.3, 1" in text for text in row.warnings)


def test_every_null_has_its_reason(benched):
    for row in benched.report.rows:
        told = " ".join(row.warnings)
        assert row.energy_mj is None and "energy_mj" in told
        assert row.latency_ms.p99 is None or row.latency_ms.n >= 662
        for name in ("p90", "p95", "p99"):
            assert (getattr(row.latency_ms, name) is None) == (f"latency_ms.{name}" in told)
        assert (row.memory_mb is None) == ("memory_mb" in told)
        assert (row.status == "unstable") == ("unstable" in told)
        assert row.throughput_ips > 0


def test_lambda_cost_compares_medians_and_names_what_is_missing(benched):
    p50 = {(row.artifact, row.batch): row.latency_ms.p50 for row in benched.report.rows}
    costs = {(cost.width, cost.batch): cost for cost in benched.report.lambda_cost}
    assert set(costs) == {(0.5, 1), (0.5, 4), (1.0, 1), (1.0, 4)}
    for (width, batch), cost in costs.items():
        assert cost.lambda_input_p50_ms == p50[cost.artifact, batch]
        if width == 0.5:
            assert cost.pinned_p50_ms == p50["w0.50-lam0.3-fp32.onnx", batch]
            assert cost.ratio == cost.lambda_input_p50_ms / cost.pinned_p50_ms
            assert cost.reason is None
        else:
            assert cost.ratio is cost.pinned_p50_ms is None
            assert "--pin-lambda" in cost.reason


def test_flatness_is_reported_for_each_lambda_input_measurement(benched):
    entries = {(entry.artifact, entry.batch) for entry in benched.report.lambda_flatness}
    assert entries == {
        (row.artifact, row.batch) for row in benched.report.rows if "lam0.3" not in row.artifact
    }
    for entry in benched.report.lambda_flatness:
        assert entry.lambdas == (0.0, 0.3, 1.0) and len(entry.p50_ms) == 3
        assert 0 < entry.p_value <= 1 and entry.max_relative_spread >= 0


def test_front_has_a_member_in_each_batch_and_pinned_files_apart(benched):
    for batch in (1, 4):
        rows = [row for row in benched.report.rows if row.batch == batch]
        assert any(row.pareto for row in rows if "lam0.3" not in row.artifact)
        assert [row.pareto for row in rows if "lam0.3" in row.artifact] == [True]


def test_settings_say_what_was_done(benched):
    settings = benched.report.settings
    assert settings["min_iterations"] == 30 and settings["throughput_workers"] == 2
    assert settings["attacks"] == {
        "pgd20": {"eps": 8 / 255, "steps": 20},
        "apgd": {"eps": 8 / 255, "steps": 20},
    }
    assert settings["transfer"] is True
    assert "attack pack" in settings["images"]
    assert benched.report.bundle.run == "tiny-run"


def test_settings_of_square_are_those_it_ran_with(squared):
    assert squared.report.settings["attacks"]["square"] == {
        "eps": 8 / 255,
        "levels": 8,
        "queries": squared.config.queries,
        "p_init": 0.8,
        "schedule": "as published, rescaled to the queries",
        "grid": "8 bit",
        "seed": squared.config.seed,
    }


def test_progress_moves_on_and_ends_at_its_total(benched):
    done = [call[0] for call in benched.progress]
    assert done == sorted(done)
    assert all(total >= done_s for done_s, total, _ in benched.progress)
    assert benched.progress[-1][0] == benched.progress[-1][1]
    labels = " ".join(label for _, _, label in benched.progress)
    assert all(stage in labels for stage in ("warm-up", "latency", "accuracy", "memory"))


def test_bundle_without_packs_uses_seeded_noise_and_says_how_to_get_accuracy(bare_bundle):
    report, _ = bench_bundle(bare_bundle, QUICKEST, widths=(1.0,), lambdas=(0.0, 1.0))
    assert "seed 0" in report.settings["images"]
    assert len(report.rows) == 2
    for row in report.rows:
        assert row.standard_accuracy is row.worst is row.pareto is None
        assert any("--attack-samples" in text for text in row.warnings)
