"""checkpoint.safetensors: weights, encodings and spec in one file that is never unpickled.

A hash over spec, names, shapes and bytes stands in the header: a flipped bit is an error, not a
slightly wrong network.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oat_edge.errors import InputError
from oat_edge.files import sha256_file, write_bytes
from oat_edge.network_spec import NetworkSpec
from oat_edge.nn.network import OATSNetwork
from oat_edge.nn.zoo import build_network
from oat_edge.require import require

FORMAT = "oat-edge/checkpoint/1"
CHECKPOINT = "checkpoint.safetensors"
METADATA_KEY = "oat_edge"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint: the network in eval mode, and where it came from."""

    network: OATSNetwork
    spec: NetworkSpec
    info: dict[str, Any]
    """Training configuration, data record, epoch and score."""
    run: str
    """Name of the run directory."""
    sha256: str
    """Of the file."""


def save_checkpoint(
    path: Path, state: dict[str, Tensor], spec: NetworkSpec, info: dict[str, Any]
) -> None:
    """Write atomically. The same state, spec and info give the same bytes."""
    safetensors = require("safetensors.torch", purpose="writing checkpoints")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    text = json.dumps({"spec": spec.to_json(), "info": info}, sort_keys=True)
    facts = {"format": FORMAT, "header": text, "sha256": _content_hash(tensors, text)}
    # One entry: safetensors writes several in a random order.
    metadata = {METADATA_KEY: json.dumps(facts, sort_keys=True)}
    write_bytes(path, safetensors.save(tensors, metadata=metadata))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a run directory or a checkpoint file; any damage raises `InputError`."""
    file = path / CHECKPOINT if path.is_dir() else path
    if not file.is_file() and (file.parent / "train_state.pt").exists():
        raise InputError(
            f"run {file.parent.resolve().name} was stopped before its first checkpoint: go on with "
            f"`oat-edge train --resume --out {file.parent}`, or name another run"
        )
    if not file.is_file():
        raise InputError(f"there is no checkpoint at {file}: train one with `oat-edge train`")
    tensors, facts = _read(file)
    remedy = "train again, or `oat-edge train --resume` if the run's train_state.pt is whole"
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InputError(f"{file} is not an oat-edge checkpoint (no format '{FORMAT}')")
    header = facts.get("header", "")
    if facts.get("sha256") != _content_hash(tensors, header):
        raise InputError(f"{file} is damaged (its content hash differs): {remedy}")
    value = json.loads(header)
    spec = NetworkSpec.from_json(value["spec"])
    network = build_network(spec)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{file} does not fit its architecture {spec.arch} ({reason})") from None
    network.eval()
    resolved = file.resolve()
    return Checkpoint(network, spec, value["info"], resolved.parent.name, sha256_file(file))


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    safetensors = require("safetensors", purpose="reading checkpoints")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            facts = json.loads((opened.metadata() or {}).get(METADATA_KEY, "{}"))
            return tensors, facts
    except Exception as error:  # safetensors' error class is not an OSError or ValueError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file} cannot be read ({reason}): train again or resume") from None


def _content_hash(tensors: dict[str, Tensor], header: str) -> str:
    # A damaged escape can decode to half a character, which plain UTF-8 cannot encode.
    digest = hashlib.sha256(header.encode(errors="surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
