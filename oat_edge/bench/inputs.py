"""What a bench measures with: the files, attack packs and images; all checked before it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import get_args

import numpy as np

from oat_edge.bench.config import SQUARE, BenchConfig, DeviceName
from oat_edge.bundle import Artifact, Bundle
from oat_edge.device.jetson import board_name, is_jetson
from oat_edge.device.nvidia import nvidia_driver
from oat_edge.device.system import System
from oat_edge.errors import DependencyError, InputError
from oat_edge.evaluation.accuracy import to_float
from oat_edge.evaluation.pack import AttackPack
from oat_edge.evaluation.pack_set import PackSet
from oat_edge.runtime import trt_api
from oat_edge.runtime.artifacts import ENGINES, FORMATS, artifacts_for
from oat_edge.runtime.cuda import gpu
from oat_edge.runtime.ort_session import load_library
from oat_edge.runtime.recipe import Recipe
from oat_edge.runtime.runner import Float32


def check_device(device: str, *, on_gpu: bool | None = None, system: System | None = None) -> None:
    """Raise `DependencyError`, with what was detected, for a device that cannot be measured here.

    on_gpu: of a Jetson, whether its GPU runs the network; None is yes. `InputError` for a name
    that is none.
    """
    if device == "cpu":
        return
    if device not in get_args(DeviceName):
        choices = ", ".join(get_args(DeviceName))
        raise InputError(f"device is '{device}': expected one of {choices}")
    system = system or System()
    if device == "jetson" and not is_jetson(system):
        raise DependencyError(
            f"device is 'jetson': this is none (detected: {detected(system)}); use --device cpu "
            "or cuda here, or measure one over SSH: --host user@orin, or name it once with "
            "`oat-edge devices add orin user@orin`"
        )
    if device == "cuda" or on_gpu in (None, True):
        other = "--device cpu" if device == "cuda" else "--processor cpu"
        try:
            gpu()
        except DependencyError as error:
            raise DependencyError(f"device is '{device}': {error}; or use {other}") from error


def detected(system: System) -> str:
    """What this machine is, as far as it matters to which device it can be."""
    driver, board = nvidia_driver(system), board_name(system)
    found = [f"NVIDIA driver {driver}" if driver else "no NVIDIA driver"]
    found.append(f"board '{board}'" if board else "no Jetson board")
    return ", ".join(found)


def check_lambdas(bundle: Bundle, lambdas: Sequence[float]) -> None:
    """Raise `InputError` unless every λ lies in the range that the network was trained for."""
    low, high = bundle.spec.lambdas[0], bundle.spec.lambdas[-1]
    for lam in lambdas:
        if not low <= lam <= high:
            raise InputError(f"lambda is {lam:g}: bundle {bundle.run} has [{low:g}, {high:g}]")


def files_to_measure(
    bundle: Bundle, widths: Sequence[float], config: BenchConfig
) -> list[Artifact]:
    """By width, λ-input before pinned; `InputError` for what the device or an engine cannot run."""
    artifacts = artifacts_for(
        bundle,
        widths,
        device=config.runner_device,
        formats=config.formats,
        precisions=config.precisions,
    )
    for artifact in artifacts:
        if artifact.format in ENGINES:
            _check_engine(artifact, config)
    return artifacts


def _check_engine(artifact: Artifact, config: BenchConfig) -> None:
    if not config.on_gpu:
        raise InputError(
            f"{artifact.file} is a {artifact.format} engine, the device is cpu: "
            "bench --device cuda, or --format onnx"
        )
    least, most = _batch_range(artifact)
    if outside := [batch for batch in config.batches if not least <= batch <= most]:
        ends = ",".join(map(str, sorted({least, most})))
        raise InputError(
            f"batch is {outside[0]}: engine {artifact.file} takes {_images(least, most)} per "
            f"request; bench --batch {ends}, or export again with a wider --batch"
        )


def fit_batches(
    bundle: Bundle, widths: Sequence[float], config: BenchConfig
) -> tuple[BenchConfig, str | None]:
    """`config` with its batches moved into what all engines take, and a line if that changed any.

    For batches that nobody named. Raises `InputError` if the engines have no batch in common.
    """
    if not config.on_gpu:
        return config, None
    artifacts = artifacts_for(
        bundle,
        widths,
        device=config.runner_device,
        formats=config.formats,
        precisions=config.precisions,
    )
    engines = [artifact for artifact in artifacts if artifact.format in ENGINES]
    if not engines:
        return config, None
    low = max(engines, key=lambda engine: _batch_range(engine)[0])
    high = min(engines, key=lambda engine: _batch_range(engine)[1])
    least, most = _batch_range(low)[0], _batch_range(high)[1]
    if least > most:
        raise InputError(
            f"no batch suits both {low.file} ({_images(*_batch_range(low))}) and {high.file} "
            f"({_images(*_batch_range(high))}): choose with --width, --format or --precision"
        )
    batches = tuple(sorted({min(max(batch, least), most) for batch in config.batches}))
    if batches == config.batches:
        return config, None
    limit = low if min(config.batches) < least else high
    usual, fitting = (",".join(map(str, some)) for some in (config.batches, batches))
    told = f"batch {fitting} instead of {usual}: {limit.file} takes "
    told += f"{_images(*_batch_range(limit))} per request"
    return dataclasses.replace(config, batches=batches), told


def check_libraries(bundle: Bundle, artifacts: Sequence[Artifact], *, device: str = "cuda") -> None:
    """Raise `DependencyError` if a library that runs these files on `device` is missing.

    It says which formats of the bundle could be measured in its place. The device ("cpu" or
    "cuda") must be there: without a driver TensorRT crashes.
    """
    widths = {artifact.width for artifact in artifacts}
    have = {artifact.format for artifact in bundle.artifacts if artifact.width in widths}
    for format in dict.fromkeys(artifact.format for artifact in artifacts):
        error = _missing(format, device)
        if error is not None:
            runs = FORMATS if device != "cpu" else ("onnx",)
            others = [f for f in runs if f in have and _missing(f, device) is None]
            names = ",".join(others)
            hint = f"; or measure what runs here: bench --format {names}" if names else ""
            raise DependencyError(f"{error}{hint}") from error


def _missing(format: str, device: str) -> DependencyError | None:
    """Why a format cannot run on the device that is here."""
    try:
        if format in ENGINES:
            trt_api.load(format)
        else:
            load_library(device)
    except DependencyError as error:
        return error
    return None


def _batch_range(engine: Artifact) -> tuple[int, int]:
    least, _, most = Recipe.from_json(engine.recipe).batches
    return least, most


def _images(least: int, most: int) -> str:
    if least < most:
        return f"{least} to {most} images"
    return f"{least} image{'s' if least > 1 else ''}"


def load_packs(bundle: Bundle, attacks: Sequence[str]) -> PackSet | None:
    """Every attack pack of the bundle, hash-checked and fit for its network; None: it has none.

    All widths, whatever is benched: the figures of a bundle are then always of the same images.
    attacks: as in `BenchConfig`. Raises `InputError` if Square has no images to start from.
    """
    packs = read_packs(bundle)
    if packs:
        return PackSet(packs, checkpoint_sha256=bundle.checkpoint_sha256, eps=bundle.spec.eps)
    if SQUARE in attacks:
        raise InputError(
            f"bundle {bundle.path.name} has no attack packs, and Square takes its clean images "
            "from them: oat-edge export --attack-samples 256"
        )
    return None


def read_packs(bundle: Bundle) -> list[AttackPack]:
    """Every attack pack of the bundle, hash-checked, with images that the network takes."""
    packs = [
        AttackPack.load(bundle.checked_path(artifact)) for artifact in bundle.of_format("attacks")
    ]
    for pack in packs:
        if pack.images.shape[1:] != bundle.spec.image_shape:
            raise InputError(
                f"attack pack {pack.attack} has images {pack.images.shape[1:]}, the network "
                f"takes {bundle.spec.image_shape}: export the attacks again"
            )
    return packs


def bench_images(
    bundle: Bundle, packs: PackSet | None, batches: Sequence[int], *, seed: int
) -> tuple[dict[int, Float32], str]:
    """Images to measure time with, by batch, and where they are from.

    They are the clean images of the attack packs, repeated to fill a batch, or uniform noise.
    """
    shape = bundle.spec.image_shape
    if packs is not None:
        images = to_float(packs.images)
        filled = {batch: np.resize(images[:batch], (batch, *shape)) for batch in batches}
        return filled, "clean images of the attack packs"
    rng = np.random.default_rng(seed)
    uniform = {batch: rng.random((batch, *shape), dtype=np.float32) for batch in batches}
    return uniform, f"uniform noise, seed {seed}"
