"""Engines on this machine: built once per network, library, GPU and recipe, and kept.

An engine runs only where it was built: same library version, same GPU, same platform. It is
executable code, so nothing is loaded whose hash does not match. Kept engines lie in the user's
cache folder, not in the bundle, which travels.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import InputError
from oat_edge.files import (
    cache_dir,
    exclusive_lock,
    read_json,
    sha256_file,
    write_bytes,
    write_json,
)
from oat_edge.runtime import trt_api
from oat_edge.runtime.recipe import Recipe

if TYPE_CHECKING:
    from oat_edge.runtime.cuda import Gpu

# An engine of TensorRT-RTX is finished on the GPU that runs it: it names none.
ANY_GPU = "any GPU"


class Say(Protocol):
    """Told what is being done, and again with the share of it in (0, 1] where it takes long."""

    def __call__(self, text: str, share: float = 0.0) -> None: ...  # noqa: D102


def silent(text: str, share: float = 0.0) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an engine is built and runs."""

    library: trt_api.Library
    gpu: Gpu | None
    """None: built ahead of time, for any."""

    @property
    def key(self) -> str:
        """What must be the same where an engine is loaded."""
        gpu = f"{self.gpu.name} (sm {self.gpu.compute_capability})" if self.gpu else ANY_GPU
        return f"{self.library.name} | {gpu} | {platform.system()} {platform.machine()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """A kept engine and what is known of it."""

    path: Path
    sha256: str
    device_key: str
    typing: str
    """ "strong", or "weak" where an old TensorRT needed precision flags."""
    precision: str | None
    """What its convolutions compute in; None: nobody has looked yet."""
    log: Path
    """What the builder said."""


def build_target(format: str) -> Target:
    """Where engines of a format can be built from here; `DependencyError` says what is missing.

    TensorRT needs a GPU, TensorRT-RTX builds ahead of time without.
    """
    from oat_edge.runtime.cuda import gpu

    library = trt_api.load(format)
    return Target(library, gpu() if format == "trt" else None)


def obtain_engine(
    bundle: Bundle, artifact: Artifact, *, device: str = "cuda", say: Say = silent
) -> Path:
    """A file with the engine of `artifact` that this machine can load.

    The bundle's own if it was built for this machine, else the kept one, else it is built now.
    Raises `InputError` (device is a CPU, damage), `DependencyError`, `BuildError`.
    """
    if device == "cpu":
        raise InputError(f"{artifact.file} is a {artifact.format} engine: it runs on device 'cuda'")
    from oat_edge.runtime.cuda import gpu

    gpu()  # said first: without one, nothing else matters
    target = build_target(artifact.format)
    recipe = Recipe.from_json(artifact.recipe)
    if not artifact.deferred:
        if _loads(artifact.device_key, target, recipe):
            return bundle.checked_path(artifact)
        say(f"{artifact.file} was built for {artifact.device_key}: building it for {target.key}")
    source = source_of(bundle, artifact)
    return keep_engine(bundle.checked_path(source), recipe, target, say=say).path


def source_of(bundle: Bundle, artifact: Artifact) -> Artifact:
    """The ONNX file that an engine is built from."""
    for one in bundle.of_format("onnx"):
        if one.file == artifact.source:
            return one
    raise InputError(
        f"bundle {bundle.path.name} lacks {artifact.source}, which {artifact.file} is built from: "
        "export again with `oat-edge export`"
    )


def keep_engine(onnx: Path, recipe: Recipe, target: Target, *, say: Say = silent) -> Engine:
    """The kept engine of an ONNX file, built now if there is none.

    Commands that build at once take turns; what one has built, the other finds.
    """
    from oat_edge.exporters.to_tensorrt import build_engine

    content = onnx.read_bytes()
    folder = cache_dir() / "engines"
    name = _digest(hashlib.sha256(content).hexdigest(), recipe, target)
    engine, facts, log = (folder / f"{name}.{suffix}" for suffix in ("engine", "json", "log"))
    if (kept := _kept(engine, facts, log)) is not None:
        return kept
    # One build at a time: the builder chooses kernels by their measured speed.
    with exclusive_lock(folder):
        if (kept := _kept(engine, facts, log)) is not None:
            return kept
        text = f"{onnx.name}: building an engine with {target.library.name}"
        say(text)
        timing = folder / f"timing-{hashlib.sha256(target.key.encode()).hexdigest()[:16]}.cache"
        built = build_engine(
            content,
            recipe,
            target.library,
            timing_cache=timing.read_bytes() if timing.is_file() else b"",
            log=log,
            progress=lambda share: say(text, share),
        )
        write_bytes(engine, built.plan)
        if built.timing_cache:
            write_bytes(timing, built.timing_cache)
        value = {
            "sha256": sha256_file(engine),
            "device_key": target.key,
            "typing": built.typing,
            "precision": built.precision,
        }
        write_json(facts, value)  # last: without it the engine does not count
    kept = _kept(engine, facts, log)
    assert kept is not None
    return kept


def _kept(engine: Path, facts: Path, log: Path) -> Engine | None:
    """A whole kept engine; None if there is none or it is damaged (it is built again)."""
    try:
        value = read_json(facts, what="engine", remedy="")
        if sha256_file(engine) != value["sha256"]:
            return None
        return Engine(path=engine, log=log, **value)
    except (InputError, OSError, KeyError, TypeError):
        return None


def _digest(onnx_sha256: str, recipe: Recipe, target: Target) -> str:
    key = json.dumps([onnx_sha256, recipe.to_json(), target.key], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _loads(device_key: str | None, target: Target, recipe: Recipe) -> bool:
    """Whether an engine of `device_key` loads here: a version-compatible one in a later library."""
    if device_key is None or device_key == target.key:
        return device_key is not None
    made_by, _, place = device_key.partition(" | ")
    here_by, _, here = target.key.partition(" | ")
    (name, _, made), (here_name, _, now) = made_by.partition(" "), here_by.partition(" ")
    later = name == here_name and _numbers(made) < _numbers(now)
    return recipe.version_compatible and place == here and later


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]
