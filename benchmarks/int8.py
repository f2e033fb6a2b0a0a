"""What int8 gains on this CPU, and where the λ-affine should stand between Q and DQ.

Networks at 32x32 in ONNX Runtime, one thread by default, relative to the float32 λ-input file.
Weights are random: they do not change the time. λ is an input unless a name says pinned:
- int8: as `export --precision int8` writes it, first convolution and classifier in float32;
- all layers: those two in 8 bits as well;
- plain: no reference folded, affines as exported (per channel, (N,C,1,1));
- eight-bit affines: multiplications, additions and ReLUs are rounded too, by ONNX Runtime's own
  quantize_static. λ's scales and shifts are then 8 bits: for comparison only;
- trt: the file for TensorRT, on this CPU.

With `--run`, instead, the error of the logits on a trained run's own data at every knot.

    python -m benchmarks.int8 [--arch resnet34,wrn-16-4] [--batch 1,16] [--threads 1]
    python -m benchmarks.int8 --run runs/latest
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from benchmarks.common import console, interleaved, ratio, save, small_image_spec
from benchmarks.inference import quartiles, randomised
from benchmarks.lambda_variants import session
from oat_edge.data import load
from oat_edge.exporters.int8 import activations, insert_qdq, kept_by_default, prepare, quantizable
from oat_edge.exporters.to_onnx import export
from oat_edge.nn.fold import FoldedNetwork, fold
from oat_edge.nn.zoo import build_network
from oat_edge.require import require
from oat_edge.train.checkpoint import load_checkpoint

BASE = "fp32"
PINNED = ("fp32 pinned", "int8 pinned")
EIGHT_BIT = ["Conv", "Gemm", "Add", "Mul", "Relu"]
Batches = list[dict[str, Any]]


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet34,wrn-16-4")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", default="1,16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--run", type=Path, help="a run directory: accuracy instead of time")
    parser.add_argument("--samples", type=int, default=500)
    arguments = parser.parse_args()
    name, rows = ("accuracy", accuracy(arguments)) if arguments.run else ("speed", speed(arguments))
    kept = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    if arguments.run:
        # A trained network says what it is; where it lies on this machine is nobody's business.
        kept["run"] = rows[0]["arch"]
        name += f"-{kept['run']}"
    save(f"int8-{name}", {"arguments": kept, "rows": rows})


def speed(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Interleaved times of all variants, by network and batch."""
    rows = []
    for arch in arguments.arch.split(","):
        spec = small_image_spec(arch)
        folded = fold(randomised(build_network(spec)), arguments.width)
        generator = np.random.default_rng(0)
        images = generator.random((24, *spec.image_shape), dtype=np.float32)
        with tempfile.TemporaryDirectory() as folder:
            models = variants(folded, spec, arguments.width, images, Path(folder))
            files = {name: Path(folder) / f"{i}.onnx" for i, name in enumerate(models)}
            for name, path in files.items():
                onnx.save(models[name], path)
            sessions = {name: session(path, arguments.threads) for name, path in files.items()}
            sizes = {name: path.stat().st_size / 1e6 for name, path in files.items()}
        for batch in map(int, arguments.batch.split(",")):
            row = {"arch": arch, "width": arguments.width, "batch": batch, "size_mb": sizes}
            rows.append(row | measure(sessions, spec, batch, arguments.rounds))
            console.print(f"{arch} width {arguments.width:g} batch {batch}", markup=False)
            for name, gain in rows[-1]["speedup"].items():
                text = f"{rows[-1]['median_ms'][name]:8.2f} ms, {gain['ratio']:.2f}"
                console.print(f"    {name:17} {text} ({quartiles(gain)})", markup=False)
    return rows


def measure(sessions: dict[str, Any], spec: Any, batch: int, rounds: int) -> dict[str, Any]:
    """Medians, and how many times as fast as the float32 file each is."""
    image = np.random.default_rng(1).random((batch, *spec.image_shape), dtype=np.float32)
    lam = np.resize(np.asarray(spec.lambdas, dtype=np.float32), batch)
    calls = max(1, 8 // batch)
    candidates = {name: call(one, image, lam) for name, one in sessions.items()}
    samples = interleaved(candidates, rounds=rounds, calls=calls)
    return {
        "median_ms": {name: statistics.median(values) for name, values in samples.items()},
        "speedup": {name: ratio(samples, BASE, name, calls=calls) for name in samples},
        "samples_ms": samples,
    }


def accuracy(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Error of the logits relative to their spread, at every knot, by width and variant."""
    checkpoint = load_checkpoint(arguments.run)
    dataset = load(checkpoint.info["data"]["name"])
    train, test = (
        split.images[: arguments.samples].astype(np.float32) / np.float32(255)
        for split in (dataset.train, dataset.test)
    )
    rows = []
    for width in checkpoint.spec.widths:
        folded = fold(checkpoint.network, width)
        with tempfile.TemporaryDirectory() as folder:
            models = variants(folded, checkpoint.spec, width, train, Path(folder))
        opened = {
            name: ort.InferenceSession(model.SerializeToString(), _quiet())
            for name, model in models.items()
            if name not in PINNED
        }
        errors: dict[str, list[float]] = {name: [] for name in opened}
        for knot in checkpoint.spec.lambdas:
            lam = np.full(len(test), knot, dtype=np.float32)
            logits = {name: call(one, test, lam)() for name, one in opened.items()}
            for name, values in logits.items():
                difference = np.sqrt(np.mean((values - logits[BASE]) ** 2))
                errors[name].append(float(difference / logits[BASE].std()))
        console.print(f"{checkpoint.spec.arch} width {width:g}, error of logits in %", markup=False)
        for name in [name for name in errors if name != BASE]:
            text = " ".join(f"{100 * value:5.2f}" for value in errors[name])
            console.print(f"    {name:17} {text}", markup=False)
        rows.append({"arch": checkpoint.spec.arch, "width": width, "relative_error": errors})
    return rows


def variants(
    folded: FoldedNetwork, spec: Any, width: float, images: Any, folder: Path
) -> dict[str, Any]:
    """All models by name; ranges are the extremes over `images` at all knots."""
    fp32, pinned = (
        onnx.load(
            folder
            / export(
                folded,
                spec,
                width=width,
                folder=folder,
                checkpoint_sha256="0" * 64,
                pinned_lambda=lam,
            ).file
        )
        for lam in (None, spec.lambdas[-1])
    )
    batches = [
        {"image": part, "lambda": np.full(len(part), knot, dtype=np.float32)}
        for part in np.array_split(images, max(1, len(images) // 32))
        for knot in spec.lambdas
    ]
    cpu, trt = prepare(fp32, target="cpu"), prepare(fp32, target="trt")
    keep = kept_by_default(cpu, target="cpu")
    pinned_cpu = prepare(pinned, target="cpu")
    pinned_keep = kept_by_default(pinned_cpu, target="cpu")
    head = frozenset(quantizable(fp32)[-1:])
    return {
        BASE: fp32,
        "fp32 pinned": pinned,
        "int8": quantised(cpu, batches, "cpu", keep),
        "all layers": quantised(cpu, batches, "cpu", frozenset()),
        "plain": quantised(fp32, batches, "cpu", keep),
        "eight-bit affines": with_all_rounded(fp32, batches, folder),
        "int8 pinned": quantised(pinned_cpu, batches, "cpu", pinned_keep),
        "trt": quantised(trt, batches, "trt", head),
    }


def quantised(model: Any, batches: Batches, target: str, keep: frozenset[str]) -> Any:
    """int8 with ranges from these batches."""
    names = activations(model, target=target, keep=keep)
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    for name in names:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        shown.graph.output.append(value)
    one = ort.InferenceSession(shown.SerializeToString(), _quiet())
    inputs = {value.name for value in one.get_inputs()}
    extremes = []
    for batch in batches:
        found = one.run(list(names), {name: batch[name] for name in inputs})
        extremes.append([(float(array.min()), float(array.max())) for array in found])
    ranges = {
        name: (min(low for low, _ in values), max(high for _, high in values))
        for name, values in zip(names, zip(*extremes, strict=True), strict=True)
    }
    return insert_qdq(model, ranges, target=target, keep=keep)


def with_all_rounded(model: Any, batches: Batches, folder: Path) -> Any:
    """ONNX Runtime's own quantisation of everything on the way."""
    quantization = require("onnxruntime.quantization", purpose="the benchmark")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Any:
            return next(self.left, None)

    source, out = folder / "source.onnx", folder / "rounded.onnx"
    onnx.save(model, source)
    quantization.quantize_static(
        source,
        out,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        op_types_to_quantize=EIGHT_BIT,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return onnx.load(out)


def call(one: Any, image: Any, lam: Any) -> Callable[[], Any]:
    """One inference of a session."""
    feed = {"image": image, "lambda": lam}
    given = {value.name: feed[value.name] for value in one.get_inputs()}
    return lambda: one.run(None, given)[0]


def _quiet() -> Any:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return options


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
