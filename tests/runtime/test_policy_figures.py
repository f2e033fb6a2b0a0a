from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import InputError
from oat_edge.runtime.policy_figures import OVER_MEDIAN, choose_files, figures_of, load_report
from tests.bench.conftest import make_bundle
from tests.bench.made_up import change, fail, make_report
from tests.runtime.reports import report_of


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny-run")


def test_each_width_gets_the_figures_of_its_own_file(bundle: Bundle) -> None:
    report = report_of(bundle)
    robust = {"worst": 0.25}
    report = change(report, lambda r: (r.width, r.lam) == (0.5, 0.3), robust_accuracy=robust)
    files = choose_files(bundle, report, device="cpu")
    assert [artifact.file for artifact, _ in files] == ["w0.50-fp32.onnx", "w1.00-fp32.onnx"]
    narrow = files[0][1]
    assert [setting.lam for setting in narrow.settings] == [0.0, 0.3, 1.0]
    assert [setting.robust for setting in narrow.settings] == [0.4, 0.25, 0.4]
    assert set(narrow.quiet_ms) == {1, 16}


@pytest.mark.parametrize("p95", [7.0, None])
def test_latency_is_p95_or_a_margin_over_the_median(bundle: Bundle, p95: float | None) -> None:
    report = report_of(bundle)
    latency = dataclasses.replace(report.rows[0].latency_ms, p50=4.0, p95=p95)
    report = change(report, lambda row: row.batch == 16, latency_ms=latency)
    (_, figures), *_ = choose_files(bundle, report, device="cpu")
    assert figures.quiet_ms[16] == (4.0 * OVER_MEDIAN if p95 is None else p95)


def test_rows_without_figures_and_of_other_files_do_not_count(bundle: Bundle) -> None:
    report = report_of(bundle)
    part = fail(report, lambda row: row.width == 0.5 and row.batch == 16, "no room")
    (_, narrow), *_ = choose_files(bundle, part, device="cpu")
    assert set(narrow.quiet_ms) == {1}
    part = change(report, lambda row: row.lam == 0.3, standard_accuracy=None)
    (_, narrow), *_ = choose_files(bundle, part, device="cpu")
    assert [setting.lam for setting in narrow.settings] == [0.0, 1.0]
    part = fail(report, lambda row: row.width == 0.5, "no room")
    assert [figures.width for _, figures in choose_files(bundle, part, device="cpu")] == [1.0]
    part = change(report, lambda row: row.width == 1.0, sha256="b" * 64)
    assert [figures.width for _, figures in choose_files(bundle, part, device="cpu")] == [0.5]


def test_a_file_without_a_hash_goes_by_its_name() -> None:
    deferred = Artifact(
        file="w0.50-fp32.onnx", sha256="", format="trt", width=0.5, deferred=True,
        source="w0.50-fp32.onnx", recipe={},
    )  # fmt: skip
    rows = make_report().rows
    assert figures_of(deferred, rows) is not None
    other = dataclasses.replace(deferred, deferred=False, sha256="d" * 64)
    assert figures_of(other, rows) is None


def test_a_report_without_accuracies_is_refused(bundle: Bundle) -> None:
    report = report_of(bundle, standard_accuracy=None)
    with pytest.raises(InputError, match=r"SA and RA of none of w0\.50-fp32\.onnx.*export"):
        choose_files(bundle, report, device="cpu")


def test_a_bundle_with_nothing_for_the_device_is_refused(bundle: Bundle) -> None:
    report = report_of(bundle)
    with pytest.raises(InputError, match=r"no onnx file in int8.*it has w0\.50"):
        choose_files(bundle, report, device="cpu", precision="int8")


def test_a_report_of_another_checkpoint_or_device_is_refused(bundle: Bundle) -> None:
    report = make_report()
    kind = report.environment.device.kind
    assert load_report(bundle, report, kind) is report
    other = dataclasses.replace(bundle, checkpoint_sha256="d" * 64)
    with pytest.raises(InputError, match=re.escape("the report is of checkpoint cccccccccccc…")):
        load_report(other, report, kind)
    with pytest.raises(InputError, match=f"was measured on {kind}.*oat-edge bench"):
        load_report(bundle, report, "cuda" if kind == "cpu" else "cpu")


def test_the_report_is_the_bundles_own_if_none_is_named(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"report\.json"):
        load_report(bundle, None, "cpu")
    with pytest.raises(InputError, match=r"elsewhere\.json"):
        load_report(bundle, tmp_path / "elsewhere.json", "cpu")


@pytest.mark.parametrize("ms", [0.0, -1.0])
def test_a_latency_that_cannot_be_is_refused(ms: float, bundle: Bundle) -> None:
    report = report_of(bundle)
    latency = dataclasses.replace(report.rows[0].latency_ms, p95=ms)
    report = change(report, lambda row: row.batch == 16, latency_ms=latency)
    with pytest.raises(InputError, match=r"latency of w0\.50-fp32\.onnx is"):
        choose_files(bundle, report, device="cpu")
