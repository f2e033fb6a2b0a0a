"""`oat-edge inspect`."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from oat_edge.bench.style import count
from oat_edge.bundle import MANIFEST, Artifact, Bundle
from oat_edge.calib.decision import amount
from oat_edge.calib.goal import LATENCY, ROBUST, STANDARD
from oat_edge.calib.operating_point_file import REMEDY, SCHEMA, OperatingPointFile
from oat_edge.cli.console import make_console, plain_table
from oat_edge.cli.int8_line import int8_line
from oat_edge.errors import InputError
from oat_edge.files import read_json, sha256_file
from oat_edge.network_spec import NetworkSpec
from oat_edge.runtime.recipe import Recipe

CHECKPOINT = "checkpoint.safetensors"
# The types that a checkpoint holds: in its file, and as torch names them.
TORCH_DTYPES = {"F32": "torch.float32", "I64": "torch.int64"}


def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="A bundle, a run directory, a checkpoint or an operating point."),
    ] = Path("bundles/latest"),
) -> None:
    """Show what a bundle, a checkpoint or an operating point holds, and check every hash.

    Needs no torch, no ONNX.
    """
    console = make_console(stderr=False)
    if (path / MANIFEST).exists() or path == Path("bundles/latest"):
        _show_bundle(Bundle.open(path), console)
    elif path.suffix == ".json" and path.is_file():
        _show_operating_point(path, console)
    else:
        _show_checkpoint(path / CHECKPOINT if path.is_dir() else path, console)


def _show_bundle(bundle: Bundle, console: Console) -> None:
    console.print(f"bundle {bundle.path.name} of run {bundle.run}", markup=False)
    console.print(f"checkpoint sha256 {bundle.checkpoint_sha256}", markup=False)
    _show_spec(bundle.spec, console)
    table = plain_table(None, ["file", "format", "width", "λ", "precision", "sha256"], left=2)
    damaged: list[InputError] = []
    for artifact in bundle.artifacts:
        try:
            if not artifact.deferred:
                bundle.checked_path(artifact)
            state = "deferred" if artifact.deferred else f"{artifact.sha256[:12]} ok"
        except InputError as error:
            damaged.append(error)
            state = "DAMAGED"
        lam = "input" if artifact.pinned_lambda is None else f"{artifact.pinned_lambda:g}"
        lam = "knots" if artifact.format == "attacks" else lam
        table.add_row(
            artifact.file,
            artifact.format,
            f"{artifact.width:g}",
            lam,
            artifact.precision_observed or f"{artifact.precision_requested} asked for",
            state,
        )
    console.print(table)
    for line in dict.fromkeys(_engine_line(a) for a in bundle.artifacts if a.recipe is not None):
        console.print(line, markup=False)
    for artifact in bundle.artifacts:
        if artifact.format == "onnx" and artifact.calibration is not None:
            console.print(int8_line(artifact), markup=False)
    if damaged:
        raise damaged[0]


def _engine_line(artifact: Artifact) -> str:
    """How engines are built, and for which device."""
    recipe = Recipe.from_json(artifact.recipe)
    low, usual, high = recipe.batches
    sizes = f"{low}" if low == high else f"{low} to {high}"
    best = "" if low == high else f" (best at {usual})"
    where = (
        f"for {artifact.device_key}"
        if artifact.device_key
        else "on the device, by `oat-edge bench`"
    )
    what = f"{recipe.format} engines: {recipe.precision}, {sizes} images per request{best}"
    return f"{what}, built {where}"


def _show_checkpoint(file: Path, console: Console) -> None:
    header = read_header(file)
    console.print(f"checkpoint {file}", markup=False)
    _show_spec(NetworkSpec.from_json(header["spec"]), console)
    info = header["info"]
    console.print(
        f"trained on {info['data']['name']}, epoch {info['epoch'] + 1} of "
        f"{info['train']['epochs']} chosen with score {info['score']:.4f}",
        markup=False,
    )
    for record in info.get("calibrated", []):
        console.print(_calibrated_line(record), markup=False)


def _calibrated_line(record: dict[str, Any]) -> str:
    """Where a width comes from that was not trained, and how good it was found to be."""
    below, above = record["neighbours"]
    source, worst = record["source"], record["worst"]
    offset = (
        "nowhere below"
        if not record["shortfall"]
        else (
            f"at worst {100 * record['shortfall']:.1f} points ({worst['accuracy']} accuracy at "
            f"λ = {worst['lambda']:g}) below"
        )
    )
    return (
        f"width {record['width']:g}: not trained, batch norms calibrated on {record['samples']} "
        f"training images for run {source['run']} ({source['checkpoint_sha256'][:12]}); "
        f"{offset} the line between widths {below:g} and {above:g}"
    )


def _show_operating_point(file: Path, console: Console) -> None:
    value = read_json(file, what="operating point", remedy=REMEDY)
    if (schema := value.get("schema")) != SCHEMA:
        raise InputError(
            f"{file} has schema {schema!r}: expected a bundle, a run directory, a checkpoint or "
            f"an operating point ('{SCHEMA}')"
        )
    point = OperatingPointFile.from_json(value, str(file))
    pinned = " (folded in)" if point.pinned else ""
    console.print(f"operating point {file}")
    console.print(f"width {point.width:g}, λ {point.lam:.4g}{pinned}, {point.precision}")
    console.print(f"{point.artifact} of run {point.run}")
    console.print(f"checkpoint sha256 {point.checkpoint_sha256}")
    console.print(_artifact_of(point, file.parent))
    goal = {name: value for name, value in point.constraints.items() if value not in (None, False)}
    console.print(f"goal: {', '.join(f'{name} {value}' for name, value in goal.items())}")
    images = f"{count(point.batch, 'image')} per request"
    figures = point.figures
    known = [
        f"{name} {amount(figure, value)}"
        for name, figure, value in (
            ("latency", LATENCY, figures.latency_ms),
            ("RA", ROBUST, figures.robust_accuracy_counted),
            ("SA", STANDARD, figures.standard_accuracy),
            ("energy", "energy_mj", figures.energy_mj),
            ("memory", "memory_mb", figures.memory_mb),
        )
        if value is not None
    ]
    console.print(f"on {point.device}, {images}: {', '.join(known) or 'nothing is known'}")
    for text in point.warnings:
        console.print(f"warning: {text}", style="yellow")


def _artifact_of(point: OperatingPointFile, folder: Path) -> str:
    """Whether the file that was chosen is there, and still the same."""
    artifact = folder / point.artifact
    if not point.sha256:
        return f"{point.artifact} is built on the device: no hash to check"
    if not artifact.is_file():
        return f"{point.artifact} is not beside this file: its hash was not checked"
    if sha256_file(artifact) != point.sha256:
        raise InputError(
            f"{artifact} is not the file that was chosen (its hash differs): {REMEDY}, or export "
            "again"
        )
    return f"{point.artifact} beside it is the file that was chosen: sha256 {point.sha256}"


def _show_spec(spec: NetworkSpec, console: Console) -> None:
    shape = "x".join(map(str, spec.image_shape))
    console.print(
        f"{spec.arch}, image {shape}, {spec.num_classes} classes, ε {spec.eps * 255:g}/255",
        markup=False,
    )
    console.print(
        f"widths {', '.join(f'{w:g}' for w in spec.widths)}; "
        f"λ knots {', '.join(f'{lam:g}' for lam in spec.lambdas)}",
        markup=False,
    )
    if spec.conditioning != "film":
        console.print(f"conditioning {spec.conditioning}", markup=False)
    if spec.heads != "shared":
        console.print(f"heads {spec.heads}", markup=False)
    if spec.calibrated_widths:
        widths = ", ".join(f"{width:g}" for width in spec.calibrated_widths)
        console.print(f"not trained, only calibrated: width {widths}", markup=False)


def read_header(file: Path) -> dict[str, Any]:
    """Spec and training facts of a checkpoint whose content matches its hash.

    Reads the safetensors format (eight bytes of length, JSON, tensors) without that package.
    Raises `InputError` on anything else and on damage.
    """
    try:
        content = file.read_bytes()
        (length,) = struct.unpack_from("<Q", content)
        tensors = json.loads(content[8 : 8 + length])
        facts = json.loads(tensors.pop("__metadata__")["oat_edge"])
        # As oat_edge.train.checkpoint hashes what it writes.
        digest = hashlib.sha256(facts["header"].encode())
        data = memoryview(content)[8 + length :]
        for name, tensor in sorted(tensors.items()):
            dtype, shape = TORCH_DTYPES[tensor["dtype"]], tuple(tensor["shape"])
            digest.update(f"\0{name}\0{dtype}\0{shape}\0".encode())
            digest.update(data[slice(*tensor["data_offsets"])])
        if digest.hexdigest() != facts["sha256"]:
            raise ValueError("its content hash differs")
        header: dict[str, Any] = json.loads(facts["header"])
        return header
    except FileNotFoundError:
        place = file.parent if file.name == CHECKPOINT else file
        raise InputError(
            f"there is no bundle and no checkpoint at {place}: make one with `oat-edge train` "
            "and `oat-edge export`"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise InputError(
            f"{file} is not a whole oat-edge checkpoint ({error}): train again"
        ) from None
