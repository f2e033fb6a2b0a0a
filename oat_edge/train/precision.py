"""In what precision a run computes and whether it is compiled: `auto`, made definite once.

What `auto` comes to is a rule over the device, not a timed trial, and is recorded in the run: the
same command gives the same run, and a resumed run goes on as it began wherever it is resumed.
"""

from __future__ import annotations

from typing import get_args

import torch

from oat_edge.config import Amp, Compile
from oat_edge.errors import InputError

DTYPES: dict[Amp, torch.dtype | None] = {"off": None, "bf16": torch.bfloat16}


def resolve_amp(setting: str, device: str) -> Amp:
    """Make auto|off|bf16 definite; `InputError` for anything else.

    auto: bf16 where the device multiplies it in hardware and sums in float32, else off: GPUs since
    Ampere, CPUs with AVX512-BF16 or AMX. Accuracy after training is the same (docs/results.md).
    """
    if setting == "auto":
        return "bf16" if _has_bf16(device) else "off"
    for amp in get_args(Amp):
        if setting == amp:
            return amp  # type: ignore[no-any-return]
    raise InputError(f"amp is '{setting}': expected auto, {' or '.join(get_args(Amp))}")


def resolve_compile(setting: str, device: str) -> Compile:
    """Make auto|off|on definite; auto is on for CUDA, where CUDA graphs save the launches."""
    if setting == "auto":
        return "on" if device == "cuda" else "off"
    for value in get_args(Compile):
        if setting == value:
            return value  # type: ignore[no-any-return]
    raise InputError(f"compile is '{setting}': expected auto, {' or '.join(get_args(Compile))}")


def _has_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Not public, hence with care: torch.cpu.get_capabilities() is younger than our oldest torch.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
