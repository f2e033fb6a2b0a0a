from __future__ import annotations

import dataclasses

import pytest

from oat_edge.calib.reports import FLEET_SCHEMA, measured_points, of_device, read_reports
from oat_edge.errors import InputError
from oat_edge.files import sha256_file, write_json
from oat_edge.remote import fleet
from tests.bench.made_up import change, fail, latency, make_report
from tests.calib.points import save


def at(report, *, model=None, when=None, settings=None, checkpoint=None):
    environment = report.environment
    if model is not None:
        device = dataclasses.replace(environment.device, model=model)
        environment = dataclasses.replace(environment, device=device)
    if when is not None:
        environment = dataclasses.replace(environment, timestamp_utc=when)
    bundle = report.bundle
    if checkpoint is not None:
        bundle = dataclasses.replace(bundle, checkpoint_sha256=checkpoint)
    settings = {"device": "cpu", **report.settings, **(settings or {})}
    return dataclasses.replace(report, environment=environment, settings=settings, bundle=bundle)


def pool(*paths, device=None, **choices):
    return measured_points(of_device(read_reports(paths), device), **choices)


def test_a_point_has_the_figures_of_its_row(tmp_path):
    report = make_report(pinned=(), batches=(1,))
    path = save(at(report, settings={"threads": 3}), tmp_path / "report.json")
    found = pool(path)
    assert len(found.points) == len(report.rows) == 6
    for row, point in zip(report.rows, found.points, strict=True):
        for name in ("artifact", "sha256", "format", "precision", "width", "lam", "batch",
                     "standard_accuracy", "energy_mj", "memory_mb", "num_samples"):  # fmt: skip
            assert getattr(point, name) == getattr(row, name)
        assert point.latency_ms == row.latency_ms.p50 and point.robust_accuracy == row.worst
        assert point.attacks == ("pgd20",) and point.threads == 3 and not point.pinned
    (source,) = found.sources
    assert source.sha256 == sha256_file(path) and source.label == "cpu (A CPU, performance)"


def test_of_a_folder_its_report_is_read(tmp_path):
    save(at(make_report()), tmp_path / "report.json")
    assert pool(tmp_path).points == pool(tmp_path / "report.json").points


@pytest.mark.parametrize("percentile", ["p50", "p95", "p99"])
def test_the_percentile_is_the_one_that_is_asked_for(percentile, tmp_path):
    times = dataclasses.replace(latency(), p50=1.0, p95=2.0, p99=None)
    report = at(make_report(latency_ms=times))
    found = pool(save(report, tmp_path / "r.json"), percentile=percentile)
    assert {p.latency_ms for p in found.points} == {
        {"p50": 1.0, "p95": 2.0, "p99": None}[percentile]
    }


def test_batch_precision_and_width_are_chosen_and_pinned_files_asked_for(tmp_path):
    report = at(make_report(kinds=(("onnx", "fp32"), ("onnx", "int8")), batches=(2, 16)))
    path = save(report, tmp_path / "r.json")
    usual = pool(path)
    assert {p.batch for p in usual.points} == {2} and not any(p.pinned for p in usual.points)
    assert len(usual.points) == 12 and usual.num_pinned == 4
    assert {p.batch for p in pool(path, batch=16).points} == {16}
    assert {p.precision for p in pool(path, precisions=["int8"]).points} == {"int8"}
    assert {p.width for p in pool(path, widths=[0.5]).points} == {0.5}
    everything = pool(path, pinned=True)
    assert {p.artifact for p in everything.points if p.pinned} == {
        f"w{width}-lambda0.3-{precision}.onnx"
        for width in ("0.50", "1.00")
        for precision in ("fp32", "int8")
    }
    with pytest.raises(InputError, match="batch is 3: the reports have 2, 16"):
        pool(path, batch=3)
    with pytest.raises(InputError, match="precision is fp16: the reports have fp32, int8"):
        pool(path, precisions=["fp16"])
    with pytest.raises(InputError, match=r"width is 0.7"):
        pool(path, widths=[0.7])


def test_rows_that_failed_are_no_points_and_unstable_ones_say_so(tmp_path):
    report = fail(make_report(pinned=(), batches=(1,)), lambda row: row.width == 0.5, "it crashed")
    report = change(report, lambda row: row.lam == 0.3 and row.width == 1, status="unstable")
    found = pool(save(at(report), tmp_path / "r.json"))
    assert {p.width for p in found.points} == {1.0} and found.num_failed == 3
    assert [p.lam for p in found.points if p.unstable] == [0.3]
    all_failed = fail(make_report(), lambda row: True, "it crashed")
    with pytest.raises(InputError, match="measurements failed: measure again"):
        pool(save(at(all_failed), tmp_path / "f.json"))


def test_of_what_was_measured_twice_the_newest_counts(tmp_path):
    old = at(make_report(standard_accuracy=0.7), when="2026-11-01T00:00:00+00:00")
    new = at(make_report(standard_accuracy=0.8, widths=(0.5,)), when="2026-11-02T00:00:00+00:00")
    paths = [save(new, tmp_path / "new.json"), save(old, tmp_path / "old.json")]
    for order in (paths, paths[::-1]):
        found = pool(*order)
        assert {(p.width, p.standard_accuracy) for p in found.points} == {(0.5, 0.8), (1.0, 0.7)}
        assert found.newest.path == paths[0]


def test_devices_are_never_mixed(tmp_path):
    here = save(at(make_report(memory_mb=10.0), model="A"), tmp_path / "report.json")
    orin = save(at(make_report(memory_mb=20.0), model="B"), tmp_path / "report-orin.json")
    with pytest.raises(InputError, match=r"of 2 devices.*--device cpu, --device orin"):
        pool(here, orin)
    assert {p.memory_mb for p in pool(here, orin, device="orin").points} == {20.0}
    assert {p.memory_mb for p in pool(here, orin, device="cpu").points} == {10.0}
    with pytest.raises(InputError, match="device is 'x': the reports are of cpu \\(A, perf"):
        pool(here, orin, device="x")
    twin = save(at(make_report(memory_mb=30.0), model="B"), tmp_path / "other.json")
    with pytest.raises(InputError, match=r"--device 'cpu \(A, performance\)', --device 'cpu \(B"):
        pool(here, twin)
    found = pool(here, twin, device="cpu (B, performance)")
    assert {p.memory_mb for p in found.points} == {30.0}


def test_a_fleet_is_read_by_the_names_of_its_devices(tmp_path):
    assert FLEET_SCHEMA == fleet.SCHEMA
    good = at(make_report(), model="A").to_json()
    path = tmp_path / "report-fleet.json"
    targets = [
        {"name": "orin", "host": "me@orin", "report": good, "error": None},
        {"name": "box", "host": "me@box", "report": good, "error": None},
        {"name": "gone", "host": "me@gone", "report": None, "error": {"message": "no"}},
    ]
    write_json(path, {"schema": FLEET_SCHEMA, "targets": targets})
    with pytest.raises(InputError, match="--device orin, --device box"):
        pool(path)
    (source,) = pool(path, device="box").sources
    assert source.name == "box"
    write_json(path, {"schema": FLEET_SCHEMA, "targets": targets[2:]})
    with pytest.raises(InputError, match="all its devices failed"):
        pool(path)


def test_a_fleet_and_the_file_of_one_of_its_devices_are_one_device(tmp_path):
    report = at(make_report(), model="A")
    alone = save(report, tmp_path / "report-orin.json")
    both = tmp_path / "report-fleet.json"
    one = {"name": "orin", "host": "me@orin", "report": report.to_json(), "error": None}
    write_json(both, {"schema": FLEET_SCHEMA, "targets": [one]})
    assert set(pool(alone, both).points) == set(pool(alone).points)


def test_two_networks_are_never_mixed(tmp_path):
    one = save(at(make_report()), tmp_path / "a.json")
    other = save(at(make_report(), checkpoint="d" * 64), tmp_path / "b.json")
    with pytest.raises(InputError, match=r"of 2 networks, a-run .*name one's alone"):
        pool(one, other)


def test_memory_of_a_gpu_counts_too(tmp_path):
    report = at(make_report(gpu_memory_mb=70.0), settings={"device": "cuda"})
    assert {p.memory_mb for p in pool(save(report, tmp_path / "r.json")).points} == {70.0}
    report = at(make_report(gpu_memory_mb=None), settings={"device": "cuda"})
    assert {p.memory_mb for p in pool(save(report, tmp_path / "r.json")).points} == {None}


def test_unequal_attacks_are_told(tmp_path):
    report = change(
        at(make_report()), lambda row: row.width == 0.5,
        robust_accuracy={"pgd20": 0.4, "square": 0.3, "worst": 0.3},
    )  # fmt: skip
    (text,) = pool(save(report, tmp_path / "r.json")).warnings
    assert "under pgd20 and some under pgd20, square" in text
    assert pool(save(at(make_report()), tmp_path / "e.json")).warnings == ()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema": "oat-edge/bench/2"}',
                '{"schema": "oat-edge/fleet/1"}', '{"schema": "oat-edge/fleet/1", "targets": [1]}']
)  # fmt: skip
def test_what_is_no_report_is_one_line(content, tmp_path):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(InputError, match="measure again"):
        pool(tmp_path / "r.json")
    with pytest.raises(InputError, match="there is no bench report"):
        pool(tmp_path / "gone.json")


def test_a_lambda_without_packs_counts_no_more_than_the_better_of_those_around_it(tmp_path):
    """As `bench --lambda 0.7 --attack pack,square` gives: there is no white-box attack at 0.7."""
    report = make_report(pinned=(), batches=(1,), lambdas=(0.0, 0.3, 0.7, 1.0))
    weak = {"square": 0.6, "transfer": 0.55, "worst": 0.55}
    report = change(report, lambda row: row.lam == 0.7, robust_accuracy=weak)
    found = pool(save(at(report), tmp_path / "r.json")).points
    for point in found:
        assert point.between_knots == (point.lam == 0.7)
        assert point.counted("robust_accuracy") == 0.4
    everywhere = change(report, lambda row: True, robust_accuracy=weak)  # nothing says more
    for point in pool(save(at(everywhere), tmp_path / "e.json")).points:
        assert not point.between_knots and point.counted("robust_accuracy") == 0.55


def test_an_attack_without_a_figure_was_not_tried(tmp_path):
    report = make_report(robust_accuracy={"pgd20": 0.4, "square": None, "worst": 0.4})
    assert {p.attacks for p in pool(save(at(report), tmp_path / "r.json")).points} == {("pgd20",)}


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"lam": 1.5}, "lambda is 1.5"),
        ({"width": 0.0}, "width is 0.0"),
        ({"num_samples": -5}, "num_samples is -5"),
        ({"energy_mj": -1.0}, "a figure is below 0"),
        ({"latency_ms": latency(-1.0)}, "a figure is below 0"),
    ],
)
def test_figures_that_cannot_be_are_refused_by_the_name_of_the_file(facts, says, tmp_path):
    report = change(make_report(), lambda row: row.lam == 0.3, **facts)
    path = save(at(report), tmp_path / "bad.json")
    with pytest.raises(InputError, match=says) as caught:
        pool(path)
    assert str(caught.value).startswith(f"{path}: ")
