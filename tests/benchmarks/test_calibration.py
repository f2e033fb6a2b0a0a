"""The script that compares calibration sets and methods runs, and what it must show holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import calibration, common
from oat_edge.calib.batches import KINDS


@pytest.mark.slow
def test_sets_and_methods_are_compared(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    arguments = ["--checkpoint", str(tiny_run), "--images", "48", "--samples", "48"]
    monkeypatch.setattr(sys, "argv", ["calibration", *arguments])
    calibration.main()
    found = json.loads((tmp_path / "calibration-digits-w1.00-cpu.json").read_text())["found"]
    assert {"λ swept, both kinds", "λ = 0, clean", "entropy", "percentile 99.99"} <= set(found)
    for one in found.values():
        for lam in ("0", "0.1", "0.2", "0.3", "0.4", "1"):
            for kind in KINDS:
                cell = one[f"{lam} {kind}"]
                assert cell["relative_error"] > 0 and 0 <= cell["agreement"] <= 1
    swept = found["λ swept, both kinds"]
    assert swept["1 clean"]["relative_error"] < 0.1
