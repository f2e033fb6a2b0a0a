"""In what precision a run computes and whether it is compiled: `auto`, made definite once.

What `auto` comes to is a rule over the device, not a timed trial, and is recorded in the run: the
same command gives the same run, and a resumed run goes on as it began wherever it is resumed.
"""

from __future__ import annotations

from typing import get_args

import torch

from oat_edge.config import Amp, Compile
from oat_edge.errors import DependencyError, InputError

DTYPES: dict[Amp, torch.dtype | None] = {"off": None, "bf16": torch.bfloat16}


def resolve_amp(setting: str, device: str) -> Amp:
    """Make auto|off|bf16 definite; `InputError` for anything else.

    auto: bf16 on CPUs with AVX512-BF16 or AMX, where it is faster and accuracy after training is
    the same (docs/results.md), else off: on GPUs neither has been measured.
    """
    if setting == "auto":
        return "bf16" if _has_fast_bf16(device) else "off"
    for amp in get_args(Amp):
        if setting == amp:
            return amp  # type: ignore[no-any-return]
    raise InputError(f"amp is '{setting}': expected auto, {' or '.join(get_args(Amp))}")


def resolve_compile(setting: str, device: str) -> Compile:
    """Make auto|off|on definite. auto: off; on CPUs it gains nothing (docs/results.md), on GPUs it
    has not been measured.

    Raises `DependencyError` if it is to be on, and torch finds no compiler for the device.
    """
    if setting in ("auto", "off"):
        return "off"
    if setting != "on":
        raise InputError(f"compile is '{setting}': expected auto, {' or '.join(get_args(Compile))}")
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # whatever the compiler's parts raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DependencyError(
            f"torch.compile does not work here ({reason}): install a C++ compiler, for CUDA "
            "triton, or leave --compile off"
        ) from error
    return "on"


def _has_fast_bf16(device: str) -> bool:
    # Not public, hence with care: torch.cpu.get_capabilities() is younger than our oldest torch.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in checks)
