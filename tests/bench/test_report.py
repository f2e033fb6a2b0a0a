from __future__ import annotations

import copy
import csv
import dataclasses
import json
import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oat_edge.bench.report import NOT_SAVED, SCHEMA, Report, save_report, write_csv
from oat_edge.bench.schema import json_name
from oat_edge.bench.statistics import DeviceMs
from oat_edge.errors import InputError

ROW_FIELDS = {
    "artifact", "sha256", "format", "backend", "width", "lambda", "precision", "batch",
    "latency_ms", "throughput_ips", "memory_mb", "energy_mj", "standard_accuracy",
    "robust_accuracy", "num_samples", "pareto", "status", "warnings", "device_ms",
    "gpu_memory_mb", "power", "state",
}  # fmt: skip


def test_schema_is_that_of_the_design(benched):
    value = benched.report.to_json()
    assert value["schema"] == SCHEMA == "oat-edge/bench/1"
    assert set(value) == {
        "schema", "environment", "settings", "rows", "bundle", "lambda_cost", "lambda_flatness",
        "samples_file", "warnings", "transfer", "profile", "transfer_artifacts",
        "monitor", "idle", "failures", "precisions",
    }  # fmt: skip
    for grid in value["transfer"]:
        assert set(grid) == {"attack", "sources", "targets", "robust_accuracy", "num_samples"}
        for point in (*grid["sources"], *grid["targets"]):
            assert set(point) == {"width", "lambda"}
    for row in value["rows"]:
        assert set(row) == ROW_FIELDS
        assert set(row["latency_ms"]) == {
            "mean", "p50", "p90", "p95", "p99", "min", "max", "cv", "n",
        }  # fmt: skip
        assert "worst" in row["robust_accuracy"]


def test_json_and_back(benched):
    text = json.dumps(benched.report.to_json(), allow_nan=False)
    again = Report.from_json(json.loads(text))
    assert again.rows == benched.report.rows
    assert again.transfer == benched.report.transfer and len(again.transfer) == 2
    assert again.to_json() == json.loads(text)


def test_a_pair_that_was_not_measured_stays_unknown(benched):
    grid = benched.report.transfer[0]
    holes = tuple((None, *shares[1:]) for shares in grid.robust_accuracy)
    report = dataclasses.replace(
        benched.report, transfer=(dataclasses.replace(grid, robust_accuracy=holes),)
    )
    text = json.dumps(report.to_json(), allow_nan=False)
    assert Report.from_json(json.loads(text)).transfer == report.transfer


def test_a_report_from_before_transfer_can_be_read(benched):
    value = json.loads(json.dumps(benched.report.to_json()))
    del value["transfer"], value["transfer_artifacts"]
    report = Report.from_json(value)
    assert report.transfer == () and report.rows == benched.report.rows


def test_a_report_that_does_not_say_what_its_grids_are_of_can_be_read(benched):
    value = json.loads(json.dumps(benched.report.to_json()))
    del value["transfer_artifacts"]
    report = Report.from_json(value)
    assert report.transfer == benched.report.transfer and report.transfer_artifacts is None
    assert report.transfer_rows == report.knob_rows


def test_saved_report_names_its_samples_which_are_whole(benched, tmp_path):
    path = tmp_path / "new" / "cpu.json"
    saved = save_report(benched.report, benched.samples, path)
    assert Report.load(path).to_json() == saved.to_json()
    assert saved.samples_file == "cpu-samples.npz" and NOT_SAVED not in saved.warnings
    assert sorted(file.name for file in path.parent.iterdir()) == ["cpu-samples.npz", "cpu.json"]
    with np.load(path.parent / saved.samples_file) as file:
        assert len(file.files) == 2 * len(benched.samples)
        for one in benched.samples:
            assert np.array_equal(file[f"{one.name}|latency_ns"], one.latency_ns)
            assert np.array_equal(file[f"{one.name}|lambda_index"], one.lambda_index)


def test_unsaved_samples_are_null_with_a_reason(benched):
    assert benched.report.samples_file is None and NOT_SAVED in benched.report.warnings


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_never_reaches_a_file(benched, tmp_path, bad):
    row = dataclasses.replace(benched.report.rows[0], throughput_ips=bad)
    report = dataclasses.replace(benched.report, rows=(row,))
    with pytest.raises(ValueError, match="null"):
        save_report(report, (), tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_csv_has_one_flat_line_per_row(benched, tmp_path):
    write_csv(benched.report, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(benched.report.rows)
    for line, row in zip(lines, benched.report.rows, strict=True):
        flat = ROW_FIELDS - {"latency_ms", "robust_accuracy", "state"}
        assert flat | {"latency_ms.p50", "robust_accuracy.worst"} <= set(line)
        assert float(line["lambda"]) == row.lam
        assert float(line["latency_ms.p50"]) == row.latency_ms.p50
        assert line["energy_mj"] == ""
        for attack in ("pgd20", "apgd", "transfer"):
            share = row.robust_accuracy.get(attack)
            assert line[f"robust_accuracy.{attack}"] == ("" if share is None else str(share))


def later_fields(cls, path=()):
    """Where a report holds fields that came after the first version of the schema."""
    for field, hint in zip(dataclasses.fields(cls), get_type_hints(cls).values(), strict=True):
        here = (*path, json_name(field.name))
        if field.default is not field.default_factory:  # one of them is set
            yield here
        inner = [hint, *get_args(hint), *(two for one in get_args(hint) for two in get_args(one))]
        for one in inner:
            if dataclasses.is_dataclass(one):
                yield from later_fields(one, here)


LATER = set(later_fields(Report))


def test_a_report_from_before_gpus_can_be_read(benched):
    value = json.loads(json.dumps(benched.report.to_json()))
    del value["profile"]
    for row in value["rows"]:
        del row["device_ms"], row["gpu_memory_mb"]
    for cost in value["lambda_cost"]:
        del cost["format"], cost["precision"]
    for name in ("host", "compute_capability", "cuda", "gpu_memory_mb"):
        del value["environment"]["device"][name]
    report = Report.from_json(value)
    assert report.rows == benched.report.rows and report.profile == ()
    assert report.environment == benched.report.environment


def with_device_times(benched):
    """The report and its samples, with made-up times on a device."""
    rng = np.random.default_rng(0)
    samples = tuple(
        dataclasses.replace(one, device_ms=rng.random((len(one.latency_ns), 3)))
        for one in benched.samples
    )
    by_name = {one.name: DeviceMs.from_samples(one.device_ms) for one in samples}
    rows = tuple(
        dataclasses.replace(row, device_ms=by_name[f"{row.artifact} batch {row.batch}"])
        for row in benched.report.rows
    )
    return dataclasses.replace(benched.report, rows=rows), samples


def test_times_on_the_device_are_kept_raw_and_summarised(benched, tmp_path):
    report, samples = with_device_times(benched)
    saved = save_report(report, samples, tmp_path / "gpu.json")
    assert Report.load(tmp_path / "gpu.json").rows == report.rows
    with np.load(tmp_path / saved.samples_file) as file:
        for one in samples:
            assert np.array_equal(file[f"{one.name}|device_ms"], one.device_ms)
    write_csv(report, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, report.rows, strict=True):
        assert float(line["device_ms.compute.p50"]) == row.device_ms.compute.p50


def spoil(value, path, new):
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("schema",), "oat-edge/bench/2"),
        (("rows",), {}),
        (("rows", 0), "row"),
        (("rows", 0, "width"), "0.5"),
        (("rows", 0, "width"), True),
        (("rows", 0, "batch"), 1.5),
        (("rows", 0, "batch"), 0),
        (("rows", 0, "status"), "fine"),
        (("rows", 0, "latency_ms", "p50"), None),
        (("rows", 0, "latency_ms", "p50"), math.nan),
        (("rows", 0, "latency_ms", "extra"), 1.0),
        (("rows", 0, "standard_accuracy"), 1.5),
        (("rows", 0, "robust_accuracy"), {}),
        (("rows", 0, "robust_accuracy", "worst"), -0.1),
        (("rows", 0, "warnings"), [1]),
        (("environment", "device"), None),
        (("environment", "library_versions"), {"numpy": 2}),
        (("lambda_cost", 0, "ratio"), "1.03"),
        (("lambda_flatness", 0, "p50_ms"), [None]),
        (("bundle", "run"), 7),
        (("transfer",), None),
        (("transfer", 0, "sources", 0, "width"), 0.0),
        (("transfer", 0, "targets", 0), "0.5@0"),
        (("transfer", 0, "robust_accuracy", 0), 0.5),
        (("transfer", 0, "robust_accuracy", 0, 0), "0.5"),
        (("transfer", 0, "extra"), 1),
    ],
)
def test_damage_is_an_input_error(benched, path, new):
    value = json.loads(json.dumps(benched.report.to_json()))
    spoil(value, path, new)
    with pytest.raises(InputError):
        Report.from_json(value)


def keys_of(value, path=()):
    """Every place in nested JSON, except inside the free-form settings."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            if (*path, key) != ("settings",):
                yield from keys_of(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from keys_of(item, (*path, index))


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_missing_key_is_an_input_error_or_a_shorter_free_dict(benched, data):
    value = copy.deepcopy(benched.report.to_json())
    path = data.draw(st.sampled_from(list(keys_of(value))))
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    free = (
        tuple(key for key in path if isinstance(key, str)) in LATER
        or path[-2:-1] == ("library_versions",)
        or (path[-2:-1] in (("clocks_mhz",), ("temperatures_c",)) and path[0] == "idle")
        or (path[-2:-1] == ("robust_accuracy",) and path[-1] != "worst")
    )
    if free:
        Report.from_json(value)
    else:
        with pytest.raises(InputError):
            Report.from_json(value)


def test_a_report_from_before_power_can_be_read(benched):
    value = json.loads(json.dumps(benched.report.to_json()))
    del value["monitor"], value["idle"]
    for row in value["rows"]:
        del row["power"], row["state"]
    report = Report.from_json(value)
    assert report.monitor is None and all(row.power is None for row in report.rows)


def test_a_row_has_a_latency_unless_it_failed(benched):
    (row, *_) = benched.report.rows
    with pytest.raises(InputError, match="its latency says else"):
        dataclasses.replace(row, latency_ms=None)
    with pytest.raises(InputError, match="its latency says else"):
        dataclasses.replace(row, status="failed")
    failed = dataclasses.replace(row, latency_ms=None, status="failed", throughput_ips=None)
    report = dataclasses.replace(benched.report, rows=(failed,))
    assert Report.from_json(json.loads(json.dumps(report.to_json()))).rows == (failed,)


def test_files_that_are_no_reports(tmp_path):
    with pytest.raises(InputError, match="oat-edge bench"):
        Report.load(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"schema": "oat-edge/b')
    with pytest.raises(InputError, match=r"cut\.json"):
        Report.load(tmp_path / "cut.json")
    with pytest.raises(InputError, match="schema"):
        Report.from_json([])


@pytest.mark.parametrize("key", ["transfer", "profile", "transfer_artifacts"])
def test_a_report_from_before_a_field_still_loads(benched, key):
    value = benched.report.to_json()
    del value[key]
    assert not getattr(Report.from_json(value), key)
