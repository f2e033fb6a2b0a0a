"""Ranges of activations, by ONNX Runtime's own calibrators.

    min-max       the extremes
    entropy       the cut whose 8-bit version loses least information (Migacz, GTC 2017)
    percentile    the cut that leaves out a given share of the values

The calibrators are fed one batch at a time, so memory does not grow with the set. Extremes come
first, whatever the method: they fix the histograms' bins, so that the order and the size of the
batches do not change a threshold (left alone, the calibrators take the bins from the first batch).
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from oat_edge.calib.batches import CalibrationBatch, CalibrationSet
from oat_edge.conditioning import Float32
from oat_edge.errors import BuildError, InputError
from oat_edge.require import require

if TYPE_CHECKING:
    import onnx

Ranges = dict[str, tuple[float, float]]
Progress = Callable[[float], None]

# Classes of onnxruntime.quantization.calibrate.
METHODS = {
    "minmax": "MinMaxCalibrater",
    "entropy": "EntropyCalibrater",
    "percentile": "PercentileCalibrater",
}
# Measured with benchmarks/calibration.py: nothing that cuts was better, entropy far worse.
DEFAULT_METHOD = "minmax"
DEFAULT_PERCENTILE = 99.999
# Bins over [-m, m]. With ONNX Runtime's 128 for entropy there is one candidate, no cut at all.
NUM_BINS = {"entropy": 1024, "percentile": 8192}
# 8 bit over [-m, m].
NUM_QUANTIZED_BINS = 256
SUM = "_oat_edge_sum"


def collect_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    calibration: CalibrationSet,
    *,
    method: str = DEFAULT_METHOD,
    percentile: float = DEFAULT_PERCENTILE,
    symmetric: bool = False,
    progress: Progress = lambda share: None,
) -> Ranges:
    """Lowest and highest value that int8 should represent, for each of the float `tensors`.

    model: with inputs `image` and, unless λ is pinned, `lambda`; it is not changed. method: one of
    `METHODS`. percentile: share of values kept, in percent, the rest is cut half at each end.
    symmetric: (-m, m) instead, m the larger magnitude of both ends. Zero need not lie inside.
    progress is told the share done.
    Raises `InputError`, and `BuildError` for activations that are not finite or always zero.
    """
    _check(model, tensors, method, percentile)
    with TemporaryDirectory(prefix="oat-edge-ranges-") as folder:
        passes = 1 if method == "minmax" else 2
        extremes = _extremes(
            model, tensors, calibration, Path(folder), lambda share: progress(share / passes)
        )
        _check_extremes(extremes)
        ranges = extremes
        if method != "minmax":
            ranges = _cut(
                _Histogram(model, extremes, method, percentile, Path(folder)),
                calibration,
                lambda share: progress((1 + share) / passes),
            )
    if symmetric:
        largest = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
        ranges = {name: (-m, m) for name, m in largest.items()}
    return {name: ranges[name] for name in tensors}


def _check(model: onnx.ModelProto, tensors: Sequence[str], method: str, percentile: float) -> None:
    if method not in METHODS:
        raise InputError(f"calibration method is '{method}': expected {', '.join(METHODS)}")
    # Less than half of the values is no range; NaN fails too.
    if not 50.0 <= percentile <= 100.0:
        raise InputError(f"percentile is {percentile:g}: expected 50 to 100")
    if not tensors:
        raise InputError("no tensors to calibrate: expected one or more")
    inputs = {value.name for value in model.graph.input}
    if not inputs <= {"image", "lambda"}:
        raise InputError(f"the graph's inputs are {sorted(inputs)}: expected image and lambda")
    known = inputs | {name for node in model.graph.node for name in node.output}
    if unknown := [name for name in tensors if name not in known]:
        raise InputError(f"the graph has no tensor '{unknown[0]}' to calibrate")


def _check_extremes(extremes: Ranges) -> None:
    for name, (low, high) in extremes.items():
        if low == high == 0:
            raise BuildError(
                f"activation '{name}' is zero on every calibration image: the layer is dead, "
                "train longer or calibrate with more images"
            )


def _extremes(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    calibration: CalibrationSet,
    folder: Path,
    progress: Progress,
) -> Ranges:
    """The smallest and the largest value of each tensor over the whole set."""
    calibrator = _calibrator("minmax", _with_sums(model, tensors), tensors, folder)
    calibrator.infer_session = _Finite(calibrator.infer_session)
    calibrator.collect_data(_Reader(model, calibration, progress))  # keeps scalars only
    return _as_ranges(calibrator.compute_data())


class _Histogram:
    """One of ONNX Runtime's histogram calibrators, with bins that fit the known extremes."""

    def __init__(
        self,
        model: onnx.ModelProto,
        extremes: Ranges,
        method: str,
        percentile: float,
        folder: Path,
    ) -> None:
        calibrate = _module()
        self.model = model
        self.extremes = extremes
        self.calibrator = _calibrator(method, model, list(extremes), folder)
        self.calibrator.collector = calibrate.HistogramCollector(
            method=method,
            symmetric=False,
            num_bins=NUM_BINS[method],
            num_quantized_bins=NUM_QUANTIZED_BINS,
            percentile=percentile,
            scenario="same",
        )
        histograms = self.calibrator.collector.histogram_dict
        for name, (low, high) in extremes.items():
            largest = np.float32(max(abs(low), abs(high)))
            span = (-float(largest), float(largest))
            bins, edges = np.histogram(np.zeros(0, np.float32), NUM_BINS[method], range=span)
            ends = (np.float32(low), np.float32(high))
            histograms[name] = (bins, edges.astype(np.float32), *ends, largest)

    def add(self, batch: CalibrationBatch) -> None:
        """Count a batch."""
        self.calibrator.collect_data(_Once(_feeds(self.model, batch)))

    def thresholds(self) -> Ranges:
        """Where the method cuts."""
        found = _as_ranges(self.calibrator.compute_data())
        # A tensor that lies within one bin cannot be cut: its ends come out crossed.
        return {
            name: cut if cut[0] < cut[1] else self.extremes[name] for name, cut in found.items()
        }


def _cut(histogram: _Histogram, calibration: CalibrationSet, progress: Progress) -> Ranges:
    with contextlib.redirect_stdout(io.StringIO()):  # the calibrators print
        for done, batch in enumerate(calibration.batches(), start=1):
            histogram.add(batch)
            progress(done / calibration.num_batches)
        return histogram.thresholds()


def _calibrator(method: str, model: onnx.ModelProto, tensors: Sequence[str], folder: Path) -> Any:
    """A calibrator of exactly these tensors, ready to be fed."""
    onnx = require("onnx", purpose="calibrating int8")
    path = folder / f"{method}.onnx"
    onnx.save(model, path)
    made = getattr(_module(), METHODS[method])(
        path, augmented_model_path=str(folder / f"{method}-augmented.onnx")
    )
    values = (*made.model.graph.value_info, *made.model.graph.output, *made.model.graph.input)
    infos = {value.name: value for value in values}
    if missing := [name for name in tensors if name not in infos]:
        raise InputError(f"the type of tensor '{missing[0]}' is unknown: run shape inference first")
    made.select_tensors_to_calibrate = lambda model: (set(tensors), infos)
    made.augment_graph()
    made.create_inference_session()
    return made


def _with_sums(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy that also gives the sum of each tensor."""
    module = require("onnx", purpose="calibrating int8")
    copy: onnx.ModelProto = module.ModelProto()
    copy.CopyFrom(model)
    for name in dict.fromkeys(tensors):
        node = module.helper.make_node("ReduceSum", [name], [name + SUM], keepdims=0)
        copy.graph.node.append(node)
        copy.graph.output.append(
            module.helper.make_tensor_value_info(name + SUM, module.TensorProto.FLOAT, [])
        )
    return copy


class _Finite:
    """A session that refuses what is not finite.

    ONNX Runtime's ReduceMin and ReduceMax skip NaN, and so do its calibrators; a sum does not.
    """

    def __init__(self, session: Any) -> None:
        self.session = session
        self.get_outputs = session.get_outputs
        self.names = [output.name for output in session.get_outputs()]

    def run(self, outputs: None, feeds: dict[str, Float32]) -> list[Any]:
        values: list[Any] = self.session.run(outputs, feeds)
        for name, value in zip(self.names, values, strict=True):
            if name.endswith(SUM) and not math.isfinite(value):
                raise BuildError(
                    f"activation '{name.removesuffix(SUM)}' is not a finite number on a "
                    "calibration image: the network's weights are damaged, train again"
                )
        return values


class _Reader:
    """All batches, as ONNX Runtime's calibrators ask for them."""

    def __init__(
        self, model: onnx.ModelProto, calibration: CalibrationSet, progress: Progress
    ) -> None:
        self.model = model
        self.batches = calibration.batches()
        self.total = calibration.num_batches
        self.progress = progress
        self.given = 0

    def get_next(self) -> dict[str, Float32] | None:
        """The next batch; None at the end."""
        if self.given:  # the batches before are done
            self.progress(self.given / self.total)
        self.given += 1
        batch = next(self.batches, None)
        return None if batch is None else _feeds(self.model, batch)


class _Once:
    """One batch."""

    def __init__(self, feeds: dict[str, Float32]) -> None:
        self.feeds: dict[str, Float32] | None = feeds

    def get_next(self) -> dict[str, Float32] | None:
        """The batch; then None."""
        feeds, self.feeds = self.feeds, None
        return feeds


def _feeds(model: onnx.ModelProto, batch: CalibrationBatch) -> dict[str, Float32]:
    """By input; a pinned graph has no `lambda`."""
    values = {"image": batch.image, "lambda": batch.lam}
    return {value.name: values[value.name] for value in model.graph.input}


def _as_ranges(data: Any) -> Ranges:
    ends = {name: one.range_value for name, one in data.items()}
    return {name: (float(np.min(low)), float(np.max(high))) for name, (low, high) in ends.items()}


def _module() -> Any:
    return require("onnxruntime.quantization.calibrate", purpose="calibrating int8")
