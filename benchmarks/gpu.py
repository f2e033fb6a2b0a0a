"""What does λ as an input cost on a GPU, and is an engine faster than what one has already?

ResNet-34 at 32x32 in half precision, widths 0.5 and 1.0, batch 1 and 32: the λ-input engine, its
twin with λ pinned, the same ONNX file in ONNX Runtime's CUDA provider, and `torch.compile`. All
take turns in one run, numpy in and out. Weights are random: they do not change the time.
What a machine lacks is left out, with the reason in the results.

    python -m benchmarks.gpu [--format trt | trt-rtx] [--rounds 50]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import console, interleaved, ratio, save, small_image_spec
from benchmarks.inference import randomised
from oat_edge.errors import DependencyError, OatEdgeError
from oat_edge.exporters.to_onnx import export
from oat_edge.network_spec import NetworkSpec
from oat_edge.nn.fold import FoldedNetwork, fold
from oat_edge.nn.zoo import build_network
from oat_edge.runtime.cuda import gpu
from oat_edge.runtime.engines import build_target, keep_engine
from oat_edge.runtime.ort import OrtRunner
from oat_edge.runtime.recipe import Recipe
from oat_edge.runtime.runner import Float32, Runner, RunnerIO
from oat_edge.runtime.trt import TrtRunner

WIDTHS = (0.5, 1.0)
BATCHES = (1, 32)
PINNED = 1.0
KNOB, FLOOR, ORT, COMPILED = "engine", "engine, λ pinned", "onnxruntime-cuda", "torch.compile"


class CompiledTorch:
    """The folded network as PyTorch runs it fastest: half precision, channels last, CUDA graphs."""

    def __init__(self, folded: FoldedNetwork) -> None:
        half = folded.cuda().half()
        half.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def network(image: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
            x = image.half().contiguous(memory_format=torch.channels_last)
            return half(x, lam.half()).float()

        self.call = torch.compile(network, mode="reduce-overhead", dynamic=False)

    def infer(self, image: Float32, lam: Float32) -> Float32:
        """Logits (N, K) of images (N, C, H, W) at λ (N,)."""
        with torch.inference_mode():
            logits = self.call(torch.from_numpy(image).cuda(), torch.from_numpy(lam).cuda())
            out: Float32 = logits.cpu().numpy()
        return out


def main() -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet34")
    parser.add_argument("--format", choices=("trt", "trt-rtx"), default="trt")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--calls", type=int, default=20)
    arguments = parser.parse_args()
    try:
        found = gpu()
    except DependencyError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    console.print(f"{found.name}, compute capability {found.compute_capability}", markup=False)
    spec = small_image_spec(arguments.arch)
    network = randomised(build_network(spec))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            runners, absent = open_all(fold(network, width), spec, width, Path(folder), arguments)
            for batch in BATCHES if runners else ():
                rows.append(measure(spec, width, batch, runners, arguments) | {"absent": absent})
                console.print(line(rows[-1]), markup=False)
            for runner in runners.values():
                if isinstance(runner, Runner):
                    runner.close()
    name = f"gpu-{arguments.arch}-{arguments.format}"
    save(name, {"arguments": vars(arguments), "rows": rows}, device="cuda")
    return 0


def open_all(
    folded: FoldedNetwork, spec: NetworkSpec, width: float, folder: Path, arguments: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """What runs on this machine, by name, and why the rest does not."""
    settings: dict[str, Any] = {
        "width": width,
        "folder": folder,
        "checkpoint_sha256": "0" * 64,
        "precision": "fp16",
    }
    files = {None: folder / export(folded, spec, **settings).file}
    files[PINNED] = folder / export(folded, spec, pinned_lambda=PINNED, **settings).file
    recipe = Recipe(format=arguments.format, precision="fp16", batches=(1, 8, max(BATCHES)))

    def engine(pinned: float | None) -> TrtRunner:
        kept = keep_engine(files[pinned], recipe, build_target(recipe.format))
        return TrtRunner(kept.path, RunnerIO.of(spec, pinned), recipe=recipe)

    makers: dict[str, Callable[[], Any]] = {
        KNOB: lambda: engine(None),
        FLOOR: lambda: engine(PINNED),
        ORT: lambda: OrtRunner(files[None], RunnerIO.of(spec), device="cuda", precision="fp16"),
        COMPILED: lambda: CompiledTorch(folded),
    }
    runners, absent = {}, {}
    for name, make in makers.items():
        try:
            runner = make()
            # Some only fail, or compile, at the first request of each size.
            for batch in BATCHES:
                image = np.zeros((batch, *spec.image_shape), dtype=np.float32)
                _request(runner, name, image, np.zeros(batch, dtype=np.float32))()
            runners[name] = runner
        except (OatEdgeError, RuntimeError, AssertionError) as error:
            absent[name] = f"{type(error).__name__}: {error}"
            console.print(f"{name} is left out: {error}", markup=False)
    return runners, absent


def measure(
    spec: NetworkSpec, width: float, batch: int, runners: dict[str, Any], arguments: Any
) -> dict[str, Any]:
    """Medians and ratios at one width and batch."""
    image = np.random.default_rng(0).random((batch, *spec.image_shape), dtype=np.float32)
    lam = np.resize(np.asarray(spec.lambdas, dtype=np.float32), batch)
    calls = arguments.calls
    samples = interleaved(
        {name: _request(runner, name, image, lam) for name, runner in runners.items()},
        rounds=arguments.rounds,
        calls=calls,
    )
    against = [(KNOB, FLOOR), (ORT, KNOB), (COMPILED, KNOB)]
    return {
        "arch": spec.arch,
        "width": width,
        "batch": batch,
        "median_ms": {name: statistics.median(values) for name, values in samples.items()},
        "device_ms": {
            name: _device_ms(runner, _request(runner, name, image, lam))
            for name, runner in runners.items()
        },
        "remarks": {name: list(getattr(runner, "remarks", ())) for name, runner in runners.items()},
        "ratios": [
            ratio(samples, over, under, calls=calls)
            for over, under in against
            if over in samples and under in samples
        ],
        "samples_ms": samples,
    }


def _request(runner: Any, name: str, image: Float32, lam: Float32) -> Callable[[], object]:
    return (lambda: runner.infer(image)) if name == FLOOR else (lambda: runner.infer(image, lam))


def _device_ms(runner: Any, call: Callable[[], object]) -> float | None:
    """Median of 100 requests without their copies, where the runner knows."""
    found = []
    for _ in range(100 if isinstance(runner, Runner) else 0):
        call()
        times = runner.device_times()
        if times is not None:
            found.append(times.compute_ms)
    return statistics.median(found) if found else None


def line(row: dict[str, Any]) -> str:
    """One result as text."""
    medians = ", ".join(f"{name} {value:.3f} ms" for name, value in row["median_ms"].items())
    ratios = ", ".join(f"{r['over']} / {r['under']} {r['ratio']:.2f}" for r in row["ratios"])
    return f"{row['arch']} width {row['width']:g} batch {row['batch']:>2}: {medians}\n    {ratios}"


if __name__ == "__main__":
    sys.exit(main())
