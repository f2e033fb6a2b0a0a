"""Rows from made-up figures, for what a short real bench cannot be made to show."""

from __future__ import annotations

import numpy as np
import pytest

from oat_edge.bench import rows as bench_rows
from oat_edge.bench.config import BenchConfig
from oat_edge.bench.latency import LatencySamples
from oat_edge.bench.memory import MemoryCost
from oat_edge.bench.rows import Figures
from oat_edge.bundle import Artifact
from oat_edge.device.state import MonitorFacts
from oat_edge.evaluation.accuracy import Accuracy
from oat_edge.runtime.recipe import Recipe

KNOTS = (0.0, 0.3, 1.0)
CONFIG = BenchConfig(batches=(1,))
NO_POWER = MonitorFacts(
    source=None,
    scope=None,
    reason="no meter here",
    averaging_s=None,
    rate_hz=20.0,
    readings_per_s=20.0,
    overhead=0.0,
    reads=(),
)


def make_rows(figures, lambdas, knots, config, monitor=NO_POWER, idle=None):
    return bench_rows.make_rows(figures, lambdas, knots, config, monitor, idle)


def figures(
    width=1.0,
    *,
    p50_ms=1.0,
    pinned=None,
    effect=0.0,
    agreed=True,
    memory=None,
    accuracy=None,
    format="onnx",
    precision="fp32",
    device_ms=None,
    recipe=None,
    **facts,
):
    """A file whose requests take `p50_ms` ± 0.1 %, the last λ `effect` more."""
    num_lambdas = 1 if pinned is not None else 3
    lambda_index = np.arange(900) % num_lambdas
    noise = np.random.default_rng(0).normal(1, 1e-3, 900)
    latency_ns = p50_ms * 1e6 * noise * (1 + effect * (lambda_index == 2))
    name = f"w{width:g}" + (f"-lam{pinned:g}" if pinned is not None else "")
    if (format, precision) != ("onnx", "fp32"):
        name += f"-{precision}.{format}"
    return Figures(
        artifact=Artifact(
            file=name,
            sha256="a" * 64,
            format=format,
            width=width,
            pinned_lambda=pinned,
            precision_requested=precision,
            recipe=None if recipe is None else recipe.to_json(),
        ),
        backend="onnxruntime-cpu",
        precision=precision,
        samples={
            1: LatencySamples(
                name=name,
                latency_ns=latency_ns.astype(np.int64),
                lambda_index=lambda_index,
                warmup_s=0.5,
                warmup_agreed=agreed,
                device_ms=device_ms,
            )
        },
        throughput_ips={1: 1000 / p50_ms},
        memory={1: memory or MemoryCost(added_mb={1: 50.0})},
        batches=(1,),
        accuracy={
            lam: Accuracy(
                standard_accuracy=sa, robust_accuracy={"pgd20": ra, "worst": ra}, num_samples=100
            )
            for lam, (sa, ra) in (accuracy or {}).items()
        },
        pack_lambdas=tuple(accuracy or ()),
        **facts,
    )


def test_lambda_that_costs_time_is_told_on_every_row_of_the_file():
    rows, (flat,), _ = make_rows([figures(effect=0.04)], KNOTS, KNOTS, CONFIG)
    assert len(rows) == 3
    assert all(any("λ changes the latency by 4" in w for w in row.warnings) for row in rows)
    assert flat.max_relative_spread == pytest.approx(0.04, abs=0.002) and flat.p_value < 0.01
    steady, _, _ = make_rows([figures()], KNOTS, KNOTS, CONFIG)
    assert not any("λ changes" in w for row in steady for w in row.warnings)


def test_steady_rows_are_ok_and_scattered_ones_unstable():
    (ok, *_), _, _ = make_rows([figures()], KNOTS, KNOTS, CONFIG)
    (unstable, *_), _, _ = make_rows([figures(effect=0.2)], KNOTS, KNOTS, CONFIG)
    assert (ok.status, unstable.status) == ("ok", "unstable")
    assert any("CV" in warning for warning in unstable.warnings)


def test_a_capped_warm_up_is_told():
    (row, *_), _, _ = make_rows([figures(agreed=False)], KNOTS, KNOTS, CONFIG)
    assert any("did not agree within 2% in 10 s" in warning for warning in row.warnings)


def test_unknown_memory_is_null_with_the_reason():
    memory = MemoryCost(added_mb={1: None}, reason="no /proc here")
    (row, *_), _, _ = make_rows([figures(memory=memory)], KNOTS, KNOTS, CONFIG)
    assert row.memory_mb is None and "memory_mb: no /proc here" in row.warnings


def test_flatness_names_the_knots_even_if_other_lambdas_get_the_rows():
    rows, (flat,), _ = make_rows([figures()], (0.25,), KNOTS, CONFIG)
    assert [row.lam for row in rows] == [0.25] and flat.lambdas == KNOTS


def test_front_is_taken_among_rows_that_keep_the_knob():
    """A pinned file is faster and as good, but takes nothing off the front."""
    narrow = figures(0.5, p50_ms=1.0, accuracy={0.0: (0.9, 0.1), 0.3: (0.8, 0.4), 1.0: (0.7, 0.3)})
    wide = figures(1.0, p50_ms=2.0, accuracy={0.0: (0.9, 0.1), 0.3: (0.8, 0.5)})
    pinned = figures(0.5, p50_ms=0.9, pinned=0.3, accuracy={0.3: (0.8, 0.4)})
    rows, _, _ = make_rows([narrow, pinned, wide], KNOTS, KNOTS, CONFIG)
    front = {(row.artifact, row.lam): row.pareto for row in rows}
    assert front == {
        ("w0.5", 0.0): True,
        ("w0.5", 0.3): True,
        ("w0.5", 1.0): False,  # λ = 0.3 is better in both accuracies
        ("w0.5-lam0.3", 0.3): True,
        ("w1", 0.0): False,  # as good as the narrow one, but slower
        ("w1", 0.3): True,
        ("w1", 1.0): None,  # no accuracy
    }


def test_cost_of_lambda_is_the_ratio_of_medians_for_every_pinned_file():
    knob, a, b = figures(p50_ms=1.05), figures(pinned=0.3), figures(pinned=1.0, p50_ms=1.05)
    _, _, costs = make_rows([knob, a, b], KNOTS, KNOTS, CONFIG)
    ratios = {cost.pinned_lambda: cost.ratio for cost in costs}
    assert ratios == {0.3: pytest.approx(1.05, abs=0.01), 1.0: pytest.approx(1.0, abs=0.01)}
    assert all(cost.reason is None for cost in costs)


def test_cost_of_lambda_compares_files_of_one_format_and_precision():
    kinds = [("onnx", "fp32", 2.0), ("trt", "fp16", 1.0), ("trt", "int8", 0.5)]
    measured = [
        figures(p50_ms=ms * (1.1 if pinned is None else 1.0), pinned=pinned, format=f, precision=p)
        for f, p, ms in kinds
        for pinned in (None, 0.3)
    ]
    _, _, costs = make_rows(measured[::-1], KNOTS, KNOTS, CONFIG)
    assert {(cost.format, cost.precision) for cost in costs} == {kind[:2] for kind in kinds}
    for cost in costs:
        assert cost.ratio == pytest.approx(1.1, abs=0.01) and cost.reason is None


def test_what_is_missing_for_the_cost_of_lambda_is_exported_in_the_same_kind():
    _, _, (cost,) = make_rows([figures(format="trt", precision="fp16")], KNOTS, KNOTS, CONFIG)
    assert cost.ratio is None
    assert "--width 1 --format trt --precision fp16 --pin-lambda 0.3" in cost.reason


TRT = {"format": "trt", "precision": "fp16"}


def test_cost_of_lambda_compares_engines_of_one_recipe():
    usual, fixed = Recipe(), Recipe(batches=(1, 1, 1), opt_level=5)
    knob = figures(recipe=usual, p50_ms=1.1, **TRT)
    alike = figures(recipe=usual, pinned=0.3, p50_ms=1.0, **TRT)
    other = figures(recipe=fixed, pinned=1.0, p50_ms=0.5, **TRT)
    _, _, costs = make_rows([knob, alike, other], KNOTS, KNOTS, CONFIG)
    by_lambda = {cost.pinned_lambda: cost for cost in costs}
    assert set(by_lambda) == {0.3, 1.0} and len(costs) == 2
    assert by_lambda[0.3].ratio == pytest.approx(1.1, abs=0.01) and by_lambda[0.3].reason is None
    unlike = by_lambda[1.0]
    assert unlike.ratio is None and "other options than w1-fp16.trt" in unlike.reason
    # The command makes the pinned file as the λ-input one is.
    assert unlike.reason.endswith("--width 1 --format trt --precision fp16 --pin-lambda 1")
    assert unlike.pinned_artifact == other.artifact.file  # pinned files are known by this
    # Whichever is there, each finds its own.
    second = figures(recipe=fixed, p50_ms=0.55, **TRT)
    _, _, costs = make_rows([knob, second, alike, other], KNOTS, KNOTS, CONFIG)
    assert [cost.reason for cost in costs] == [None, None]


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (Recipe(batches=(1, 8, 32)), ""),
        (Recipe(batches=(8, 8, 8)), " --batch 8"),
        (Recipe(batches=(1, 4, 16), opt_level=0), " --batch 1,4,16 --opt-level 0"),
        (Recipe(workspace_mb=64, refit=True), " --workspace-mb 64 --refit"),
        (Recipe(version_compatible=True), " --version-compatible"),
    ],
)
def test_what_is_exported_for_the_cost_of_lambda_is_built_alike(recipe, options):
    for pinned, end in ((None, " --pin-lambda 0.3"), (0.3, "")):
        _, _, (cost,) = make_rows(
            [figures(recipe=recipe, pinned=pinned, **TRT)], KNOTS, KNOTS, CONFIG
        )
        assert cost.ratio is None
        assert cost.reason.endswith(f"--width 1 --format trt --precision fp16{options}{end}")


def test_times_on_the_device_become_three_summaries_of_the_same_requests():
    device_ms = np.random.default_rng(0).random((900, 3))
    (row, *_), _, _ = make_rows([figures(device_ms=device_ms, on_gpu=True)], KNOTS, KNOTS, CONFIG)
    for index, part in enumerate((row.device_ms.h2d, row.device_ms.compute, row.device_ms.d2h)):
        assert part.n == row.latency_ms.n
        assert part.p50 == pytest.approx(np.median(device_ms[:, index]))
        assert part.max == device_ms[:, index].max()
    assert not any("device_ms" in text for text in row.warnings)


def test_a_gpu_without_a_clock_or_memory_figure_has_nulls_with_reasons():
    memory = MemoryCost(added_mb={1: 1.0}, gpu_added_mb={1: None}, gpu_reason="the driver is gone")
    (row, *_), _, _ = make_rows([figures(memory=memory, on_gpu=True)], KNOTS, KNOTS, CONFIG)
    assert row.device_ms is row.gpu_memory_mb is None
    assert "gpu_memory_mb: the driver is gone" in row.warnings
    assert any(text.startswith("device_ms: onnxruntime-cpu") for text in row.warnings)


def test_what_a_runner_remarks_is_on_all_its_rows():
    remark = "cuda_graph: not captured (one reason)"
    rows, _, _ = make_rows([figures(remarks=(remark,))], KNOTS, KNOTS, CONFIG)
    assert all(remark in row.warnings for row in rows)


def test_a_pinned_file_alone_has_no_ratio_but_a_remedy():
    _, flat, (cost,) = make_rows([figures(pinned=0.3)], KNOTS, KNOTS, CONFIG)
    assert flat == () and cost.ratio is None and cost.artifact is None
    assert cost.pinned_p50_ms is not None and "oat-edge export --width 1" in cost.reason


def test_a_single_knot_has_no_flatness_but_a_reason():
    dedicated = figures(pinned=None)
    one = LatencySamples(
        name="w1",
        latency_ns=dedicated.samples[1].latency_ns,
        lambda_index=np.zeros(900, dtype=np.int64),
        warmup_s=0.5,
        warmup_agreed=True,
    )
    dedicated.samples[1] = one
    _, (flat,), _ = make_rows([dedicated], (1.0,), (1.0,), CONFIG)
    assert flat.p_value is flat.max_relative_spread is None and "two values" in flat.reason
