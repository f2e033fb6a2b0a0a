"""Engines on this machine: built once per network, library, GPU and recipe, and kept.

An engine runs only where it was built: same library version, same GPU, same platform. It is
executable code, so nothing is loaded whose hash does not match. Kept engines lie in the user's
cache folder, not in the bundle, which travels: what devices have sent back into a bundle
(`oat_edge.remote.engines`) is never loaded here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from oat_edge import __version__
from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import InputError
from oat_edge.files import (
    cache_dir,
    exclusive_lock,
    read_json,
    remove_temporaries,
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
        """What must be the same where an engine is loaded.

        CUDA calls every Jetson of a family the same: the board and its multiprocessors count too.
        """
        where = f"{platform.system()} {platform.machine()}"
        if self.gpu is None:
            return f"{self.library.name} | {ANY_GPU} | {where}"
        sm = f"sm {self.gpu.compute_capability}, {self.gpu.multiprocessors} multiprocessors"
        board = f", {name}" if (name := _board()) else ""
        return f"{self.library.name} | {self.gpu.name} ({sm}){board} | {where}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """An engine on this machine's disk and what is known of it."""

    path: Path
    sha256: str
    device_key: str
    typing: str
    """ "strong", or "weak" where an old TensorRT needed precision flags."""
    precision: str | None
    """What its convolutions compute in; None: nobody has looked yet."""
    log: Path | None = None
    """What the builder said; None: it was built elsewhere."""


def build_target(format: str) -> Target:
    """Where engines of a format can be built from here; `DependencyError` says what is missing.

    TensorRT needs a GPU, TensorRT-RTX builds ahead of time without.
    """
    from oat_edge.runtime.cuda import gpu

    library = trt_api.load(format)
    return Target(library, gpu() if format == "trt" else None)


def obtain_engine(
    bundle: Bundle, artifact: Artifact, *, device: str = "cuda", say: Say = silent
) -> Engine:
    """The engine of `artifact` that this machine can load.

    The bundle's own if it was built for this machine, else the kept one, else it is built now.
    Raises `InputError` (device is a CPU, damage), `DependencyError`, `BuildError`.
    """
    if device == "cpu":
        raise InputError(f"{artifact.file} is a {artifact.format} engine: it runs on device 'cuda'")
    from oat_edge.runtime.cuda import gpu

    gpu()  # said first: without one, nothing else matters
    recipe = recipe_of(artifact)
    target = build_target(artifact.format)
    if not artifact.deferred:
        if _loads(artifact.device_key, target, recipe):
            return Engine(
                path=bundle.checked_path(artifact),
                sha256=artifact.sha256,
                device_key=str(artifact.device_key),
                typing=artifact.typing or "strong",
                precision=artifact.precision_observed,
            )
        say(f"{artifact.file} was built for {artifact.device_key}: building it for {target.key}")
    source = bundle.checked_path(source_of(bundle, artifact))
    return keep_engine(source, recipe, target, say=say)


def recipe_of(artifact: Artifact) -> Recipe:
    """How an engine is built; `InputError` if its entry contradicts itself."""
    recipe = Recipe.from_json(artifact.recipe)
    named = (artifact.format, artifact.precision_requested)
    if (recipe.format, recipe.precision) != named:
        raise InputError(
            f"the manifest calls {artifact.file} {' '.join(named)}, its recipe "
            f"{recipe.format} {recipe.precision}: export again with `oat-edge export`"
        )
    return recipe


def source_of(bundle: Bundle, artifact: Artifact) -> Artifact:
    """The ONNX file that an engine is built from."""
    for one in bundle.of_format("onnx"):
        if one.file == artifact.source:
            return one
    raise InputError(
        f"bundle {bundle.path.name} lacks {artifact.source}, which {artifact.file} is built from: "
        "export again with `oat-edge export`"
    )


def kept_folder() -> Path:
    """Where this user's engines are kept; it need not be there."""
    return cache_dir() / "engines"


def keep_engine(onnx: Path, recipe: Recipe, target: Target, *, say: Say = silent) -> Engine:
    """The kept engine of an ONNX file, built now if there is none.

    Commands that build at once take turns; what one has built, the other finds.
    """
    from oat_edge.exporters.to_tensorrt import build_engine

    content = onnx.read_bytes()
    folder = _own_folder(kept_folder())
    name = engine_name(hashlib.sha256(content).hexdigest(), recipe, target.key)
    engine, facts, log = _files(folder, name)
    if (kept := _kept(folder, name)) is not None:
        return kept
    # One build at a time: the builder chooses kernels by their measured speed.
    wait = f"{onnx.name}: waiting for another command that builds an engine"
    with exclusive_lock(folder, waiting=lambda: say(wait)):
        if (kept := _kept(folder, name)) is not None:
            return kept
        remove_temporaries(folder)  # of builds that were killed
        text = f"{onnx.name}: building an engine with {target.library.name}"
        say(text)
        timing = folder / f"timing-{hashlib.sha256(target.key.encode()).hexdigest()[:16]}.cache"
        built = build_engine(
            content,
            recipe,
            target.library,
            timing_cache=_read(timing),
            log=log,
            progress=lambda share: say(text, share),
        )
        write_bytes(engine, built.plan)
        value = {
            "sha256": sha256_file(engine),
            "device_key": target.key,
            "typing": built.typing,
            "precision": built.precision,
        }
        write_json(facts, value)  # without it the engine does not count
        if built.timing_cache:
            with contextlib.suppress(InputError):  # it only makes the next build faster
                write_bytes(timing, built.timing_cache)
    kept = _kept(folder, name)
    assert kept is not None
    return kept


def _files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Engine, facts and log."""
    engine, facts, log = (folder / f"{name}.{suffix}" for suffix in ("engine", "json", "log"))
    return engine, facts, log


def _kept(folder: Path, name: str) -> Engine | None:
    """A whole kept engine; None if there is none or it is damaged (it is built again)."""
    engine, facts, log = _files(folder, name)
    try:
        value = read_json(facts, what="engine", remedy="")
        if sha256_file(engine) != value["sha256"]:
            return None
        return Engine(path=engine, log=log, **value)
    except (InputError, OSError, KeyError, TypeError):
        return None


def _own_folder(folder: Path) -> Path:
    """A folder that nobody else can put an engine into; `InputError` otherwise."""
    hint = "kept engines lie there, name another place with XDG_CACHE_HOME"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise InputError(f"cannot write {folder} ({error.strerror}): {hint}") from error
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise InputError(f"{folder} is another user's, or others may write it: {hint}")
    return folder


def _read(path: Path) -> bytes:
    """Content of a file; of one that is not there or not readable none."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _board() -> str | None:
    """Name of a board with a device tree, such as a Jetson."""
    return _read(Path("/proc/device-tree/model")).decode(errors="replace").strip("\0 \n") or None


def engine_name(onnx_sha256: str, recipe: Recipe, device_key: str) -> str:
    """What a kept engine is called: the same for what would be the same engine."""
    # The version: what else the builder is told may change with it.
    key = json.dumps([onnx_sha256, recipe.to_json(), device_key, __version__], sort_keys=True)
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
