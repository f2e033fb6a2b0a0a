"""The benchmark scripts run, on sizes that take seconds, and say what `make bench` reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import (
    common,
    fusion,
    gpu,
    inference,
    masked_gradients,
    square_reference,
    train_step,
    validation,
)
from tests.gpus import on_gpu

pytestmark = pytest.mark.usefixtures("frozen_heap")


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    return tmp_path


def test_inference(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        "inference",
        "--arch",
        "resnet8",
        "--rounds",
        "2",
        "--calls",
        "1",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(inference, "WIDTHS", (0.5,))
    inference.main()
    saved = json.loads((results / "inference-resnet8-threads1.json").read_text())
    assert [(row["width"], row["batch"]) for row in saved["rows"]] == [
        (0.5, 1),
        (0.5, 16),
    ]
    for row in saved["rows"]:
        assert row["size_mb"]["lambda-input"] < row["size_mb"]["straightforward"]
        medians = row["median_ms"]
        assert row["lambda_cost"]["ratio"] == medians["lambda-input"] / medians["pinned"]


def test_train_step(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        "train_step",
        "--arch",
        "resnet8",
        "--batch",
        "12",
        "--rounds",
        "2",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    train_step.main()
    saved = json.loads((results / "train_step-resnet8-threads1.json").read_text())
    medians = saved["median_ms"]
    for name in ("folded", "folded, NCHW", "bf16"):
        assert saved["gains"][name]["ratio"] == medians["straightforward"] / medians[name]
    assert "device" in saved["environment"]


def test_validation(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--arch", "resnet8", "--rounds", "2", "--threads", "1", "--batches", "40"]
    monkeypatch.setattr(sys, "argv", ["validation", *arguments])
    monkeypatch.setattr(validation, "NUM_IMAGES", 20)
    validation.main()
    saved = json.loads((results / "validation-resnet8-cpu-threads1.json").read_text())
    assert set(saved["gains"]) == {"20", "40"}
    assert saved["gains"]["20"]["ratio"] == 1


def test_masked_gradients(results: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--checkpoint", tiny_run, "--samples", "20", "--queries", "20"]
    monkeypatch.setattr(sys, "argv", ["masked_gradients", *map(str, arguments)])
    masked_gradients.main()
    saved = json.loads((results / "masked-gradients-digits.json").read_text())
    flagged = {
        name: {check["name"] for check in network["checks"] if check["flagged"]}
        for name, network in saved["networks"].items()
    }
    assert not flagged["honest"]
    assert "randomised output" in flagged["noise on the logits"]
    assert "zero gradient" in flagged["input in 16 levels"]


def test_square_reference(results: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--checkpoint", tiny_run, "--samples", "20", "--queries", "10", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["square_reference", *map(str, arguments)])
    square_reference.main()
    (file,) = results.glob("square-reference-*.json")
    saved = json.loads(file.read_text())
    assert len(saved["rows"]) == 4
    for row in saved["rows"]:
        assert 0 <= row["robust_accuracy"] <= saved["standard_accuracy"]
        assert 1 <= row["mean_queries"] <= 10


def test_fusion(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fusion", "--arch", "resnet8"])
    assert fusion.main() == 0
    saved = json.loads((results / "fusion-resnet8.json").read_text())
    assert saved["library"].startswith("tensorrt_rtx ")
    for row in saved["networks"]:
        assert row["convolutions"] == 9 <= row["pinned"] <= row["lambda-input"]
    assert set(saved["forms"]) == set(fusion.FORMS)
    assert saved["forms"]["constant (λ pinned)"]["fused"]


def test_gpu_needs_one(
    results: Path, no_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 3
    assert capsys.readouterr().out.startswith("error: ") and list(results.iterdir()) == []


@on_gpu
def test_gpu(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--arch", "resnet8", "--rounds", "2", "--calls", "2"])
    assert gpu.main() == 0
    (row, *_) = json.loads((results / "gpu-resnet8-trt.json").read_text())["rows"]
    assert set(row["median_ms"]) | set(row["absent"]) == {
        gpu.KNOB, gpu.FLOOR, gpu.ORT, gpu.COMPILED,
    }  # fmt: skip
