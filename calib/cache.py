"""Ranges on disk: read again where model, images, λ grid and method are the same.

One JSON file for each key in the user's cache folder. What lies there is believed only if the file
is, byte for byte, what would be written; else the ranges are computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oat_edge import __version__
from oat_edge.calib.batches import CalibrationSet
from oat_edge.calib.ranges import (
    DEFAULT_METHOD,
    DEFAULT_PERCENTILE,
    Progress,
    Ranges,
    collect_ranges,
)
from oat_edge.errors import InputError
from oat_edge.files import cache_dir, write_bytes
from oat_edge.require import require

if TYPE_CHECKING:
    import onnx

SCHEMA = "oat-edge/ranges/1"


def cached_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    calibration: CalibrationSet,
    *,
    method: str = DEFAULT_METHOD,
    percentile: float = DEFAULT_PERCENTILE,
    symmetric: bool = False,
    progress: Progress = lambda share: None,
    say: Callable[[str], object] = lambda text: None,
    compute: Callable[..., Ranges] = collect_ranges,
) -> Ranges:
    """As `collect_ranges`, from the cache if they are there; say is told of a damaged file.

    Processes that compute the same at once both write it, whole. A folder that cannot be written
    is no error: it only means computing again.
    """
    key = range_key(
        model, tensors, calibration, method=method, percentile=percentile, symmetric=symmetric
    )
    path = cache_path(key)
    kept, damage = _read(path, key)
    if kept is not None:
        progress(1.0)
        return {name: kept[name] for name in tensors}
    if damage:
        say(f"kept ranges {path.name} {damage}: computing them again")
    ranges = compute(
        model,
        tensors,
        calibration,
        method=method,
        percentile=percentile,
        symmetric=symmetric,
        progress=progress,
    )
    try:
        write_bytes(path, _text(key, ranges))
    except InputError as error:
        say(f"ranges are not kept: {error}")
    return ranges


def range_key(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    calibration: CalibrationSet,
    *,
    method: str,
    percentile: float,
    symmetric: bool,
) -> dict[str, Any]:
    """All that ranges depend on, as JSON values."""
    content = model.SerializeToString(deterministic=True)
    return {
        "model_sha256": hashlib.sha256(content).hexdigest(),
        "calibration_sha256": calibration.sha256(),
        "lambdas": list(calibration.lambdas),
        "tensors": sorted(set(tensors)),
        "method": method,
        "percentile": percentile if method == "percentile" else None,
        "symmetric": symmetric,
        "onnxruntime": require("onnxruntime", purpose="calibrating int8").__version__,
        "oat_edge": __version__,
    }


def cache_path(key: dict[str, Any]) -> Path:
    """Where the ranges of a key are kept."""
    digest = hashlib.sha256(_canonical(key)).hexdigest()
    return cache_dir() / "ranges" / f"{digest[:32]}.json"


def _read(path: Path, key: dict[str, Any]) -> tuple[Ranges | None, str]:
    """The kept ranges, or None and what is wrong with the file (nothing if there is none)."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    try:
        found = json.loads(content)["ranges"]
        ranges = {name: (float(low), float(high)) for name, (low, high) in found.items()}
        whole = content == _text(key, ranges)
    # What JSON that is not ours can raise on the way.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        whole = False
    if not whole or set(ranges) != set(key["tensors"]):
        return None, "are damaged"
    return ranges, ""


def _text(key: dict[str, Any], ranges: Ranges) -> bytes:
    """The one way to write these ranges: with the key, and a hash over both."""
    value = {"schema": SCHEMA, "key": key, "ranges": ranges}
    digest = hashlib.sha256(_canonical(value)).hexdigest()
    text = json.dumps({**value, "sha256": digest}, indent=1, allow_nan=False)
    return text.encode() + b"\n"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()
