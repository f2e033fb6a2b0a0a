"""Parts and outcomes as JSON: they cross processes, and lie in results.jsonl."""

from __future__ import annotations

from typing import Any

import numpy as np

from oat_edge.bench.latency import Part, WarmUp
from oat_edge.evaluation.outcome import Bool, Outcome
from oat_edge.operating_point import OperatingPoint


def part_to_json(part: Part) -> dict[str, Any]:
    """Times as they are, in ns and ms."""
    return {
        "start_ns": part.start_ns,
        "end_ns": part.end_ns,
        "latency_ns": part.latency_ns.tolist(),
        "device_ms": None if part.device_ms is None else part.device_ms.tolist(),
    }


def part_from_json(value: dict[str, Any]) -> Part:
    """Read what `part_to_json` gave."""
    device_ms = value["device_ms"]
    return Part(
        latency_ns=np.array(value["latency_ns"], dtype=np.int64),
        start_ns=value["start_ns"],
        end_ns=value["end_ns"],
        device_ms=None if device_ms is None else np.array(device_ms, dtype=np.float64),
    )


def warm_up_to_json(warm: WarmUp) -> dict[str, Any]:
    """How a warm-up went."""
    return {"seconds": warm.seconds, "agreed": warm.agreed, "median_s": warm.median_s}


def warm_up_from_json(value: dict[str, Any]) -> WarmUp:
    """Read what `warm_up_to_json` gave."""
    return WarmUp(value["seconds"], value["agreed"], value["median_s"])


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Each image is a 1 (right) or a 0, in the order of the images."""
    return {
        "clean": _digits(outcome.clean),
        "attacked": {name: _digits(right) for name, right in outcome.attacked.items()},
        "crafted": {name: _digits(right) for name, right in outcome.crafted.items()},
        "transferred": [
            {"attack": attack, "width": point.width, "lambda": point.lam, "right": _digits(right)}
            for (attack, point), right in outcome.transferred.items()
        ],
    }


def outcome_from_json(value: dict[str, Any]) -> Outcome:
    """Read what `outcome_to_json` gave."""
    return Outcome(
        clean=_bools(value["clean"]),
        attacked={name: _bools(right) for name, right in value["attacked"].items()},
        crafted={name: _bools(right) for name, right in value["crafted"].items()},
        transferred={
            (one["attack"], OperatingPoint(one["width"], one["lambda"])): _bools(one["right"])
            for one in value["transferred"]
        },
    )


def _digits(right: Bool) -> str:
    return "".join("1" if one else "0" for one in right)


def _bools(digits: str) -> Bool:
    return np.array([digit == "1" for digit in digits], dtype=np.bool_)
