from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from oat_edge.bench.config import BenchConfig
from oat_edge.bench.run import bench_bundle
from oat_edge.bundle import Bundle, add_artifacts
from oat_edge.errors import DependencyError, InputError
from oat_edge.evaluation.accuracy import evaluate_pack
from oat_edge.evaluation.pack import AttackPack
from oat_edge.files import sha256_file
from oat_edge.runtime import open_artifact

QUICKEST = BenchConfig(
    batches=(1,),
    min_seconds=0.0,
    min_iterations=3,
    warmup_min_s=0.0,
    warmup_cap_s=0.0,
    rewarm_s=0.0,
    threads=1,
    throughput_seconds=0.0,
    throughput_workers=1,
)


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


def test_accuracy_is_that_of_the_runner_on_the_packs(benched):
    bundle = benched.bundle
    for artifact in bundle.of_format("onnx"):
        packs = [
            AttackPack.load(bundle.path / pack.file)
            for pack in bundle.of_format("attacks")
            if pack.width == artifact.width
        ]
        with open_artifact(bundle, artifact) as runner:
            expected = evaluate_pack(
                runner, packs, width=artifact.width, checkpoint_sha256=bundle.checkpoint_sha256
            )
        for row in benched.report.rows:
            if row.artifact == artifact.file and row.lam in expected:
                accuracy = expected[row.lam]
                assert row.standard_accuracy == accuracy.standard_accuracy
                assert row.robust_accuracy == accuracy.robust_accuracy
                assert row.num_samples == 12


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
    assert "attack pack" in settings["images"]
    assert benched.report.bundle.run == "tiny-run"


def test_progress_moves_on_and_ends_at_its_total(benched):
    done = [call[0] for call in benched.progress]
    assert done == sorted(done)
    assert all(total >= done_s for done_s, total, _ in benched.progress)
    assert benched.progress[-1][0] == benched.progress[-1][1]
    labels = " ".join(label for _, _, label in benched.progress)
    assert all(stage in labels for stage in ("warm-up", "latency", "accuracy", "memory"))


@pytest.mark.parametrize("device", ["cuda", "jetson"])
def test_other_devices_are_refused_with_what_was_found(bundle, device):
    config = dataclasses.replace(QUICKEST, device=device)
    with pytest.raises(DependencyError, match=r"benches cpu only \(detected: .*NVIDIA") as error:
        bench_bundle(bundle, config, widths=(1.0,), lambdas=(0.0,))
    assert error.value.exit_code == 3 and "\n" not in str(error.value)


def test_bundle_without_packs_uses_seeded_noise_and_says_how_to_get_accuracy(bare_bundle):
    report, _ = bench_bundle(bare_bundle, QUICKEST, widths=(1.0,), lambdas=(0.0, 1.0))
    assert "seed 0" in report.settings["images"]
    assert len(report.rows) == 2
    for row in report.rows:
        assert row.standard_accuracy is row.worst is row.pareto is None
        assert any("--attack-samples" in text for text in row.warnings)


@pytest.mark.parametrize(
    ("widths", "lambdas", "match"),
    [((0.75,), (0.0,), "width 0.75"), ((1.0,), (1.5,), "lambda is 1.5")],
)
def test_bad_choices_fail_before_measuring(bundle, widths, lambdas, match):
    with pytest.raises(InputError, match=match):
        bench_bundle(bundle, QUICKEST, widths=widths, lambdas=lambdas)


@pytest.fixture
def folder(bundle, tmp_path):
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))


def test_damaged_artifacts_are_not_measured(folder):
    broken = Path(folder / "attacks-w1.00-pgd20.npz")
    broken.write_bytes(broken.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match="damaged"):
        bench_bundle(Bundle.open(folder), QUICKEST, widths=(1.0,), lambdas=(0.0,))


def test_pack_of_another_shape_is_refused(bundle, folder):
    name = "attacks-w1.00-pgd20.npz"
    pack = AttackPack.load(folder / name)
    wide = np.repeat(pack.images, 2, axis=3)
    other = dataclasses.replace(pack, images=wide, adversarial=np.stack([wide] * 3))
    other.save(folder / name)
    artifacts = [
        dataclasses.replace(a, sha256=sha256_file(folder / name)) if a.file == name else a
        for a in bundle.artifacts
    ]
    changed = add_artifacts(
        folder,
        artifacts,
        run=bundle.run,
        checkpoint_sha256=bundle.checkpoint_sha256,
        spec=bundle.spec,
    )
    with pytest.raises(InputError, match="images"):
        bench_bundle(changed, QUICKEST, widths=(1.0,), lambdas=(0.0,))
