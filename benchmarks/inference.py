"""What does λ as an input cost?  λ-input against λ-pinned against a straightforward export.

ResNet-34 at 32x32 in ONNX Runtime on this CPU, widths 0.5 and 1.0, batch 1 and 16. Weights are
random: they do not change the time. The straightforward export keeps both batch norms, `where`
and FiLM's MLPs in the graph, as a plain export of the papers' network does.

    python -m benchmarks.inference [--rounds 30] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import console, interleaved, ratio, save, small_image_spec
from benchmarks.straightforward import StraightforwardNetwork
from oat_edge.bench.throughput import available_cores
from oat_edge.exporters.to_onnx import OPSET, export
from oat_edge.network_spec import NetworkSpec
from oat_edge.nn.fold import fold
from oat_edge.nn.network import OATSNetwork
from oat_edge.nn.zoo import build_network
from oat_edge.require import require
from oat_edge.runtime.ort import OrtRunner
from oat_edge.runtime.runner import RunnerIO

WIDTHS = (0.5, 1.0)
BATCHES = (1, 16)
KINDS = ("pinned", "lambda-input", "straightforward")


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet34")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    spec = small_image_spec(arguments.arch)
    network = randomised(build_network(spec))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            files = make_files(network, spec, width, Path(folder))
            for batch in BATCHES:
                rows.append(measure(spec, width, batch, files, arguments))
                console.print(line(rows[-1]), markup=False)
    name = f"inference-{arguments.arch}-threads{arguments.threads or available_cores()}"
    save(name, {"arguments": vars(arguments), "rows": rows})


def measure(
    spec: NetworkSpec, width: float, batch: int, files: dict[str, Path], arguments: Any
) -> dict[str, Any]:
    """Medians and ratios of the three exports at one width and batch."""
    image = np.random.default_rng(0).random((batch, *spec.image_shape), dtype=np.float32)
    lam = np.resize(np.asarray(spec.lambdas, dtype=np.float32), batch)
    runners = {}
    for kind, path in files.items():
        io = RunnerIO.of(spec, 1.0 if kind == "pinned" else None)
        runners[kind] = OrtRunner(path, io, threads=arguments.threads)
    check_equal(runners, image, lam)
    calls = arguments.calls
    samples = interleaved(
        {
            kind: lambda r=runner: r.infer(image, None if r.io.pinned_lambda is not None else lam)
            for kind, runner in runners.items()
        },
        rounds=arguments.rounds,
        calls=calls,
    )
    return {
        "arch": spec.arch,
        "width": width,
        "batch": batch,
        "median_ms": {kind: statistics.median(samples[kind]) for kind in KINDS},
        "size_mb": {kind: files[kind].stat().st_size / 1e6 for kind in KINDS},
        "lambda_cost": ratio(samples, "lambda-input", "pinned", calls=calls),
        "speedup": ratio(samples, "straightforward", "lambda-input", calls=calls),
        "samples_ms": samples,
    }


def line(row: dict[str, Any]) -> str:
    """One result as text."""
    cost, gain, size = row["lambda_cost"], row["speedup"], row["size_mb"]
    medians = ", ".join(f"{kind} {row['median_ms'][kind]:.2f} ms" for kind in KINDS)
    saved = 1 - size["lambda-input"] / size["straightforward"]
    return (
        f"{row['arch']} width {row['width']:g} batch {row['batch']:>2}: {medians}\n"
        f"    λ-input / pinned {cost['ratio']:.3f} (per round {quartiles(cost)}), "
        f"straightforward / λ-input {gain['ratio']:.2f} ({quartiles(gain)}), "
        f"file {size['lambda-input']:.1f} MB, {saved:.0%} smaller"
    )


def quartiles(value: dict[str, Any]) -> str:
    """ "1.02–1.05" """
    low, high = value["ratio_per_round_quartiles"]
    return f"{low:.3f}–{high:.3f}"


def make_files(
    network: OATSNetwork, spec: NetworkSpec, width: float, folder: Path
) -> dict[str, Path]:
    """The three exports of one width."""
    folded = fold(network, width)
    settings: dict[str, Any] = {"width": width, "folder": folder, "checkpoint_sha256": "0" * 64}
    pinned = export(folded, spec, pinned_lambda=1.0, **settings)
    dynamic = export(folded, spec, **settings)
    plain = StraightforwardNetwork(network).eval()
    plain.width = width
    path = folder / f"w{width:.2f}-straightforward.onnx"
    export_plainly(plain, spec, path)
    return {
        "pinned": folder / pinned.file,
        "lambda-input": folder / dynamic.file,
        "straightforward": path,
    }


def export_plainly(net: torch.nn.Module, spec: NetworkSpec, path: Path) -> None:
    """torch.onnx.export with its own optimiser, as anyone would call it."""
    onnx = require("onnx", purpose="the benchmark")
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            (torch.zeros(2, *spec.image_shape), torch.ones(2)),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=["image", "lambda"],
            output_names=["logits"],
            dynamic_shapes={"image": {0: batch}, "lam": {0: batch}},
            verbose=False,
        )
    assert program is not None
    onnx.save(program.model_proto, path)


def check_equal(runners: dict[str, OrtRunner], image: Any, lam: Any) -> None:
    """A benchmark of files that compute different things says nothing."""
    expected = runners["straightforward"].infer(image, lam)
    got = runners["lambda-input"].infer(image, lam)
    scale = np.abs(expected).max()
    assert np.abs(got - expected).max() <= 1e-4 * scale, "exports differ"
    at_one = runners["lambda-input"].infer(image, 1.0)
    assert np.abs(runners["pinned"].infer(image) - at_one).max() <= 1e-4 * scale, "pinned differs"


def randomised(network: OATSNetwork) -> OATSNetwork:
    """Statistics as a trained network has them, so that no constant folds away by chance."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    for _, norm in network.norms():
        if norm.film is not None:
            norm.film.out.weight.data.normal_(0, 0.02, generator=generator)
    return network.eval()


if __name__ == "__main__":
    main()
