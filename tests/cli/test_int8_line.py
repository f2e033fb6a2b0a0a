from __future__ import annotations

import pytest

from oat_edge.bundle import Artifact
from oat_edge.cli.int8_line import int8_line


def line(accuracy):
    calibration = {
        "images": {"lambdas": [0.0, 1.0], "num_images": 512},
        "method": "minmax",
        "kept_in_float32": ["conv"],
        "num_layers": 10,
        "accuracy": accuracy,
    }
    return int8_line(
        Artifact(file="i.onnx", sha256="0", format="onnx", width=0.5, calibration=calibration)
    )


def lost(*pairs):
    changes = [
        {"lam": lam, "standard": {"lost": standard}, "robust": {"lost": robust}}
        for lam, (standard, robust) in zip((0.0, 1.0), pairs, strict=True)
    ]
    return {"changes": changes, "num_images": 512, "detectable": 1.5625}


@pytest.mark.parametrize(
    ("accuracy", "text"),
    [
        (
            lost((0.0, 0.004), (-0.02, 0.0)),
            "largest change +2.0 points of SA at λ=1 (512 images, on which changes below 1.6 "
            "points may be chance)",
        ),
        (lost((0.0, 0.01), (0.0, 0.0)), "largest change -1.0 points of RA at λ=0 (512 images, "),
        (lost((0.0, 0.0), (0.0, 0.0)), "; no change (512 images, "),
        (None, "its cost in accuracy was not measured"),
    ],
)
def test_what_it_cost_is_said_with_what_could_be_seen(accuracy, text):
    assert text in line(accuracy) and "1 of 10 layers in float32" in line(accuracy)
