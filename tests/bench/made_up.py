"""Reports that nobody measured: quiet ones, in which a test puts one trouble."""

from __future__ import annotations

import dataclasses

from oat_edge.bench.environment import ClocksMhz, Device, Environment
from oat_edge.bench.report import BundleId, LambdaCost, LambdaFlatness, Report, Row
from oat_edge.bench.statistics import DeviceMs, LatencyMs
from oat_edge.device.state import MonitorFacts, Power, Range, SpanState, State

USUAL = (("onnx", "fp32"),)
READS = (
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count",
)


def latency(p50=1.0, cv=0.01, n=1000):
    return LatencyMs(
        mean=p50, p50=p50, p90=p50, p95=p50, p99=p50, min=p50, max=p50, cv=cv, n=n
    )  # fmt: skip


def device_ms(h2d, compute, d2h):
    return DeviceMs(h2d=latency(h2d), compute=latency(compute), d2h=latency(d2h))


def state(throttled=(), temperature_c=50.0):
    clock = Range(min=2000.0, median=2000.0, max=2000.0)
    return State(clock_mhz=clock, temperature_c=temperature_c, throttled=tuple(throttled))


POWER = Power(
    mean_w=12.5, idle_w=4.2, energy_mj=1.0, source="rapl", scope="CPU package 0", rate_hz=20.0,
    num_readings=200,
)  # fmt: skip
IDLE = SpanState(
    seconds=2.0, mean_w=4.2, power_readings=40, clocks_mhz={}, temperatures_c={}, throttled=()
)
MONITOR = MonitorFacts(
    source="rapl", scope="CPU package 0", reason=None, averaging_s=0.0, rate_hz=20.0,
    readings_per_s=20.0, overhead=0.01, reads=READS,
)  # fmt: skip
ENVIRONMENT = Environment(
    device=Device(
        kind="cpu", model="A CPU", board=None, machine="x86_64", cores=8,
        vector_extensions=("avx2",),
    ),
    os="Linux",
    kernel="Linux 6",
    driver=None,
    python="3.11",
    library_versions={"oat-edge": "0.1.0", "onnxruntime": "1.30.0"},
    power_mode="performance",
    clocks_mhz=ClocksMhz(min=2000.0, max=2000.0, limit=3000.0),
    load_average=(0.5, 0.5, 0.5),
    git_commit=None,
    timestamp_utc="2026-11-01T00:00:00+00:00",
    warnings=(),
)  # fmt: skip


def name_of(width, kind, pinned=None):
    format, precision = kind
    lam = "" if pinned is None else f"-lambda{pinned:g}"
    return f"w{width:.2f}{lam}-{precision}.{'onnx' if format == 'onnx' else 'engine'}"


def row_of(width=1.0, lam=0.0, batch=1, kind=USUAL[0], pinned=None, **facts):
    return Row(
        **{
            "artifact": name_of(width, kind, pinned),
            "sha256": "a" * 64,
            "format": kind[0],
            "backend": "a back end",
            "width": width,
            "lam": lam,
            "precision": kind[1],
            "batch": batch,
            "latency_ms": latency(),
            "throughput_ips": 1000.0,
            "memory_mb": 50.0,
            "energy_mj": POWER.energy_mj,
            "standard_accuracy": 0.9,
            "robust_accuracy": {"pgd20": 0.4, "worst": 0.4},
            "num_samples": 100,
            "pareto": False,
            "status": "ok",
            "warnings": (),
            "power": POWER,
            "state": state(),
            **facts,
        }
    )


def make_report(
    widths=(0.5, 1.0), lambdas=(0.0, 0.3, 1.0), batches=(1, 16), kinds=USUAL, pinned=(0.3,), **facts
):
    """Every width in every kind, with λ as an input and with each of `pinned`; all is well.

    facts: of all rows.
    """
    rows, costs, flats = [], [], []
    for width in widths:
        for kind in kinds:
            knob = name_of(width, kind)
            for batch in batches:
                rows += [row_of(width, lam, batch, kind, **facts) for lam in lambdas]
                flats.append(
                    LambdaFlatness(
                        artifact=knob, batch=batch, lambdas=tuple(lambdas),
                        p50_ms=(1.0,) * len(lambdas), max_relative_spread=0.001, p_value=0.5,
                        num_samples=900, reason=None,
                    )
                )  # fmt: skip
            for lam in pinned:
                rows += [row_of(width, lam, batch, kind, lam, **facts) for batch in batches]
                costs += [
                    LambdaCost(
                        width=width, batch=batch, artifact=knob,
                        pinned_artifact=name_of(width, kind, lam), pinned_lambda=lam,
                        lambda_input_p50_ms=1.1, pinned_p50_ms=1.0, ratio=1.1, reason=None,
                        format=kind[0], precision=kind[1],
                    )
                    for batch in batches
                ]  # fmt: skip
    return Report(
        environment=ENVIRONMENT,
        settings={"attacks": {"pgd20": {"steps": 20}}, "nodes": {}, "held": {}},
        bundle=BundleId(run="a-run", checkpoint_sha256="c" * 64),
        rows=tuple(rows),
        lambda_cost=tuple(costs),
        lambda_flatness=tuple(flats),
        samples_file="report-samples.npz",
        warnings=(),
        monitor=MONITOR,
        idle=IDLE,
    )


def change(report, which, **facts):
    """The report with these facts in the rows for which `which(row)` is true."""
    rows = tuple(dataclasses.replace(row, **facts) if which(row) else row for row in report.rows)
    return dataclasses.replace(report, rows=rows)


def fail(report, which, reason):
    """The report with these rows failed, as `rows.py` makes them."""
    return change(
        report, which, latency_ms=None, throughput_ips=None, memory_mb=None, energy_mj=None,
        power=None, state=None, pareto=None, device_ms=None, gpu_memory_mb=None, status="failed",
        warnings=(f"latency_ms, throughput_ips, energy_mj: {reason}", f"memory_mb: {reason}"),
    )  # fmt: skip
