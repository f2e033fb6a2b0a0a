"""What needs no GPU of an engine at work; the rest is in test_trt.py."""

from __future__ import annotations

from oat_edge.runtime import trt_api
from oat_edge.runtime.trt_engine import _profiler, median_ms
from tests.packages import need_rtx


def test_times_of_layers_are_medians_of_what_each_request_adds_up_to():
    """The library's own profiler is told times as the library tells them: one request stalls."""
    need_rtx()
    request_ms: dict[str, float] = {}
    profiler = _profiler(trt_api.load("trt-rtx"), request_ms)
    stalls = iter([0.0, 0.0, 4.0, 0.0, 0.0])

    def request() -> None:
        profiler.report_layer_time("second to none", 0.25)
        profiler.report_layer_time("a later one", 0.5 + next(stalls))
        profiler.report_layer_time("second to none", 0.125)  # a second part of the same

    found = median_ms(request, request_ms, runs=5)
    assert list(found.items()) == [("second to none", 0.375), ("a later one", 0.5)]
