"""A bundle on disk: manifest.json and the artifacts it vouches for (schema oat-edge/bundle/1).

Every artifact's SHA-256 stands in the manifest, and the manifest carries its own: a flipped bit
anywhere is found before anything is loaded. (A TensorRT engine is executable code.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oat_edge import __version__
from oat_edge.dataclass_json import check_range, from_json
from oat_edge.errors import InputError
from oat_edge.files import exclusive_lock, point_latest, read_json, sha256_file, write_json
from oat_edge.network_spec import NetworkSpec

SCHEMA = "oat-edge/bundle/1"
MANIFEST = "manifest.json"
# Whom an int8 file is for: unsigned activations for the dot products of x86-64 CPUs, symmetric ones
# for TensorRT, which takes no others.
TARGETS = ("cpu", "trt")
REMEDY = "export again with `oat-edge export`"
# A damaged manifest is not added to: it must be replaced.
REMEDY_MANIFEST = "export again with `oat-edge export --replace`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """One file of a bundle and what is known of it."""

    file: str
    """Plain file name inside the bundle."""
    sha256: str
    """Empty for a deferred engine: there is no file yet."""
    format: str
    """ "onnx", "attacks", "trt" (TensorRT) or "trt-rtx" (TensorRT-RTX)."""
    width: float
    precision_requested: str = "fp32"
    precision_observed: str | None = "fp32"
    """Of an engine, what its inspector says; None: nobody has looked yet (needs a GPU)."""
    pinned_lambda: float | None = None
    """λ that is folded into the weights; None: λ is an input."""
    attack: str | None = None
    """Of an attack pack: the attack's name."""
    versions: dict[str, str] = field(default_factory=dict)
    """Packages that made the file."""
    source: str | None = None
    """Of an engine: the ONNX file of this bundle that it is built from."""
    recipe: dict[str, Any] | None = None
    """Of an engine: how it is built (`oat_edge.runtime.recipe.Recipe`)."""
    typing: str | None = None
    """Of an engine: "strong", or "weak" where an old TensorRT was allowed a precision."""
    deferred: bool = False
    """An engine that is to be built on the device that runs it."""
    device_key: str | None = None
    """Of an engine: the library and device it was built for."""
    parity: dict[str, Any] | None = None
    """Figures of the check against PyTorch."""
    target: str | None = None
    """Of an int8 file: what its activations are made for, one of `TARGETS`."""
    calibration: dict[str, Any] | None = None
    """Of an int8 file: the images (hash, number, λ), the method, what stayed in float32 and what
    it cost in accuracy (`oat_edge.calib.quantize.Quantized`)."""

    def __post_init__(self) -> None:
        if self.file in ("", "..", MANIFEST) or Path(self.file).name != self.file:
            raise InputError(f"artifact file is '{self.file}': expected a plain file name")
        check_range("artifact width", self.width, 0.0, 1.0)
        if not isinstance(self.deferred, bool) or not isinstance(self.sha256, str):
            raise InputError(
                f"artifact {self.file} has deferred {self.deferred!r}: expected a bool"
            )
        if self.pinned_lambda is not None:
            check_range("artifact pinned_lambda", self.pinned_lambda, 0.0, 1.0)
        if self.target not in (None, *TARGETS):
            raise InputError(f"artifact {self.file} has target {self.target!r}: expected {TARGETS}")
        if self.deferred == bool(self.sha256):
            raise InputError(f"artifact {self.file} is deferred and there, or neither")
        if self.deferred and (self.source is None or self.recipe is None):
            raise InputError(f"artifact {self.file} is deferred without a source and a recipe")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle folder and its manifest, read once."""

    path: Path
    run: str
    checkpoint_sha256: str
    spec: NetworkSpec
    artifacts: tuple[Artifact, ...]

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read a bundle; raises `InputError` if the manifest is missing or damaged."""
        folder = Path(path)
        file = folder / MANIFEST
        if not folder.is_dir():
            raise InputError(f"there is no bundle at {folder}: make one with `oat-edge export`")
        manifest = read_json(file, what="bundle manifest", remedy=REMEDY_MANIFEST)
        if manifest.get("schema") != SCHEMA:
            raise InputError(
                f"{file} has schema {manifest.get('schema')!r}, "
                f"expected '{SCHEMA}': {REMEDY_MANIFEST}"
            )
        if manifest.pop("integrity", None) != _digest(manifest):
            raise InputError(f"{file} is damaged (integrity hash differs): {REMEDY_MANIFEST}")
        try:
            items, spec = manifest["artifacts"], NetworkSpec.from_json(manifest["spec"])
            run, checkpoint_sha256 = manifest["run"], manifest["checkpoint_sha256"]
            artifacts = tuple(from_json(Artifact, item, "artifact") for item in items)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{file} is not a whole manifest ({error}): {REMEDY_MANIFEST}"
            ) from None
        # resolve(): `latest` may be re-pointed while this bundle is in use.
        return cls(folder.resolve(), run, checkpoint_sha256, spec, artifacts)

    def select(
        self,
        *,
        format: str,
        width: float | None = None,
        precision: str | None = None,
        pinned_lambda: float | None = None,
        attack: str | None = None,
    ) -> Artifact:
        """The first artifact that fits; `InputError` lists what there is if none does."""
        for artifact in self.artifacts:
            if (
                artifact.format == format
                and (width is None or artifact.width == width)
                and (precision is None or artifact.precision_requested == precision)
                and artifact.pinned_lambda == pinned_lambda
                and artifact.attack == attack
            ):
                return artifact
        have = ", ".join(sorted(artifact.file for artifact in self.artifacts)) or "nothing"
        wanted = f"{format} artifact" + (f" of width {width:g}" if width is not None else "")
        wanted += f" pinned at λ={pinned_lambda:g}" if pinned_lambda is not None else ""
        option = f" --width {width:g}" if width is not None else ""
        raise InputError(
            f"bundle {self.path.name} has no {wanted} (it has {have}): oat-edge export{option}"
        )

    def of_format(self, format: str) -> tuple[Artifact, ...]:
        """All artifacts of one format, by width, λ-input before pinned."""
        chosen = (artifact for artifact in self.artifacts if artifact.format == format)
        return tuple(sorted(chosen, key=lambda a: (a.width, a.pinned_lambda is not None, a.file)))

    def checked_path(self, artifact: Artifact) -> Path:
        """Path of an artifact whose content matches its hash; `InputError` otherwise."""
        path = self.path / artifact.file
        if artifact.deferred:
            raise InputError(f"{path} is not built yet: open it on the device that runs it")
        if not path.is_file():
            raise InputError(f"{path} is missing, the manifest lists it: {REMEDY}")
        try:
            found = sha256_file(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): {REMEDY}") from None
        if found != artifact.sha256:
            raise InputError(
                f"{path} is damaged (sha256 {found[:12]}…, manifest says "
                f"{artifact.sha256[:12]}…): {REMEDY}"
            )
        return path


def save_manifest(bundle: Bundle) -> None:
    """Write manifest.json atomically, with its integrity hash."""
    manifest = {
        "schema": SCHEMA,
        "version": __version__,
        "run": bundle.run,
        "checkpoint_sha256": bundle.checkpoint_sha256,
        "spec": bundle.spec.to_json(),
        "artifacts": [dataclasses.asdict(artifact) for artifact in bundle.artifacts],
    }
    write_json(bundle.path / MANIFEST, {**manifest, "integrity": _digest(manifest)})


def add_artifacts(
    path: Path,
    new: list[Artifact],
    *,
    run: str,
    checkpoint_sha256: str,
    spec: NetworkSpec,
    staging: Path | None = None,
    replace: bool = False,
) -> Bundle:
    """List artifacts in the manifest of the bundle at `path`, and point `latest` to it.

    staging: folder on the same disk that holds the files until now; None: they are in place.
    An entry of the same file name is replaced. A bundle holds artifacts of one checkpoint: those
    of another are an error, unless `replace` takes them out of the bundle, files and all.
    Commands that add to one bundle at once take turns.
    """
    names = {artifact.file for artifact in new}
    with exclusive_lock(path):
        old = check_same_checkpoint(path, checkpoint_sha256, replace=replace)
        others = [a for a in old.artifacts if a.file not in names] if old else []
        same = old is not None and old.checkpoint_sha256 == checkpoint_sha256
        if staging is not None:
            for artifact in new:
                if not artifact.deferred:
                    (staging / artifact.file).replace(path / artifact.file)
        bundle = Bundle(path, run, checkpoint_sha256, spec, (*(others if same else ()), *new))
        save_manifest(bundle)
        # What is no longer listed goes: another checkpoint's, and engines that were there before.
        gone = [artifact for artifact in new if artifact.deferred] + ([] if same else others)
        for artifact in gone:
            (path / artifact.file).unlink(missing_ok=True)
    point_latest(path)
    return bundle


def check_same_checkpoint(path: Path, checkpoint_sha256: str, *, replace: bool) -> Bundle | None:
    """The bundle that lies at `path`, if any.

    Raises `InputError` if it is damaged or of another checkpoint, unless it is to be replaced.
    """
    if not (path / MANIFEST).exists():
        return None
    try:
        bundle = Bundle.open(path)
    except InputError:
        if replace:
            return None
        raise
    if replace or bundle.checkpoint_sha256 == checkpoint_sha256:
        return bundle
    raise InputError(
        f"bundle {path} holds artifacts of checkpoint {bundle.checkpoint_sha256[:12]}…, this is "
        f"{checkpoint_sha256[:12]}…: name another --out, or pass --replace"
    )


def _digest(manifest: dict[str, Any]) -> str:
    canonical = json.dumps(manifest, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # A damaged escape can decode to half a character, which plain UTF-8 cannot encode.
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()
