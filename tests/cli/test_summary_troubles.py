from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from oat_edge.bench.diagnosis import diagnose
from oat_edge.cli.summary import print_report
from oat_edge.device.jetson import Jetson, PowerMode
from tests.bench.made_up import (
    ENVIRONMENT,
    MONITOR,
    change,
    device_ms,
    fail,
    latency,
    state,
)
from tests.cli.test_summary import demo_like, printed


def test_diagnoses_are_printed_and_what_they_cover_is_not_repeated():
    text = "unstable: CV 50.0% is above 2.5%; stop other programs and fix the clocks"
    report = change(
        demo_like(), lambda row: row.batch == 1, status="unstable", latency_ms=latency(cv=0.5),
        warnings=(text, "memory_mb: no /proc here"),
    )  # fmt: skip
    lines = printed(report).splitlines()
    (found,) = diagnose(report)
    assert lines.count(str(found)) == 1 and "no trouble seen" not in "".join(lines)
    assert sum("CV" in line for line in lines) == 1
    (warning,) = [line for line in lines if line.startswith("warning: ")]
    assert warning.startswith("warning: memory_mb: no /proc here (the worst of ")


def test_a_clean_report_says_so():
    lines = printed(demo_like()).splitlines()
    assert lines[-1] == "diagnosis: no trouble seen with latency"
    assert not any(line.startswith(("warning", "Not known")) for line in lines)


def test_what_the_machine_does_not_tell_is_one_line_instead_of_a_warning_per_row():
    why = "energy_mj: no power sensor here"
    state_only = dataclasses.replace(state(), clock_mhz=None)
    report = change(
        demo_like(), lambda row: True, energy_mj=None, power=None, state=state_only,
        warnings=(why,),
    )  # fmt: skip
    report = dataclasses.replace(report, monitor=dataclasses.replace(MONITOR, reads=()))
    lines = printed(report).splitlines()
    (line,) = [line for line in lines if "no power sensor" in line]
    assert line == (
        "Not known: power and energy (no power sensor here), clocks while it measured, throttling."
    )
    assert not any(line.startswith("warning") for line in lines)


def test_an_old_report_without_monitor_is_printed():
    report = dataclasses.replace(demo_like(), monitor=None, idle=None, settings={})
    report = change(report, lambda row: True, power=None, energy_mj=None, state=None)
    text = printed(report)
    assert "Not known: power and energy, clocks while it measured, throttling." in text


def test_power_is_told_with_its_source_scope_and_rest():
    lines = printed(demo_like()).splitlines()
    assert "power: rapl, CPU package 0; 4.2 W at rest" in lines
    assert any("W, mJ" in line and "at rest" in line for line in lines)


def test_a_jetson_is_told_with_its_state_and_what_was_set(jetson):
    environment = dataclasses.replace(ENVIRONMENT, jetson=jetson)
    held = {"set": {"clocks": "clocks fixed"}, "before": {}}
    report = dataclasses.replace(
        demo_like(), environment=environment, settings={**demo_like().settings, "held": held}
    )
    lines = printed(report).splitlines()
    assert "A Jetson, JetPack 6.2.x, power mode 15W, clocks not locked" in lines
    assert "set for this bench: clocks fixed" in lines


@pytest.fixture
def jetson():
    facts = dict.fromkeys(field.name for field in dataclasses.fields(Jetson))
    return Jetson(
        **{
            **facts,
            "model": "A Jetson",
            "jetpack": "6.2.x",
            "power_mode": PowerMode(id=0, name="15W"),
            "clocks_locked": False,
            "warnings": (),
        }
    )


def test_a_recorded_machine_is_not_taken_for_this_one():
    environment = dataclasses.replace(ENVIRONMENT, recorded_from="trees/orin")
    text = printed(dataclasses.replace(demo_like(), environment=environment))
    assert "a recorded tree, not this machine: trees/orin" in text


def test_failed_rows_are_printed_with_dashes_and_their_reason():
    report = fail(demo_like(), lambda row: row.width == 0.5 and row.batch == 16, "it was lost")
    lines = printed(report).splitlines()
    failed = [line.split() for line in lines if line.endswith("failed")]
    assert [cells[-7:] for cells in failed] == [[*["–"] * 6, "failed"]] * 2
    (line,) = [line for line in lines if "it was lost" in line]
    assert line.startswith("failed: w0.50-fp32.onnx and 1 more, batch 16: ")


def test_a_report_in_which_all_failed_is_printed():
    text = printed(fail(demo_like(), lambda row: True, "it was lost"), width=100)
    assert "failed: all 6 files, batch 1 and 16: it was lost" in " ".join(text.split())


def test_unknown_costs_of_lambda_are_told_once_per_width():
    report = demo_like()
    costs = tuple(
        dataclasses.replace(cost, ratio=None, reason="no pinned file; export it")
        for cost in report.lambda_cost
    )
    lines = printed(dataclasses.replace(report, lambda_cost=costs)).splitlines()
    found = [line for line in lines if line.startswith("λ as an input costs")]
    assert len(found) == 3 and all(line.count("export it") == 1 for line in found)
    assert "width 0.5: unknown at batch 1 and 16 (no pinned file; export it)" in found[0]


def test_where_a_gpu_waits_is_on_the_screen():
    report = change(demo_like(), lambda row: row.batch == 1, device_ms=device_ms(0.1, 0.2, 0.1))
    text = printed(report)
    assert text.count("\non the device, w") == 3 and text.count("enqueue-bound: ") == 1


def test_styles_and_no_markup():
    """Colour on a terminal only, and nothing of a file's name is taken for markup."""
    report = change(demo_like(), lambda row: row.width == 0.5, artifact="[red]x[/red].onnx")
    file = io.StringIO()
    print_report(report, Console(file=file, width=100, force_terminal=True, markup=False))
    assert "\x1b[" in file.getvalue()
    assert "\x1b[" not in printed(report)
    shaky = change(report, lambda row: True, latency_ms=latency(cv=0.5), status="unstable")
    shaky = change(shaky, lambda row: row.width != 0.5, latency_ms=latency(), status="ok")
    assert "unstable: [red]x[/red].onnx, batch 1 and 16" in printed(shaky)
