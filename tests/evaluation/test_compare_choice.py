from __future__ import annotations

import pytest

from oat_edge.errors import InputError
from oat_edge.evaluation.reference import find_checkpoint
from tests.evaluation.test_compare import compare


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"device": "tpu"}, "device is 'tpu': expected cpu, cuda"),
        ({"formats": ("tflite",)}, "format is 'tflite': expected onnx, trt, trt-rtx"),
        ({"precisions": ("fp8",)}, "precision is 'fp8': expected fp32, fp16, int8"),
        ({"num_samples": 0}, "samples is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"lambdas": (0.5, 1.2)}, "lambda is 1.2"),
        ({"lambdas": (float("nan"),)}, "lambda is nan"),
        ({"precisions": ("int8",)}, "nothing of these widths, formats and precisions"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, part, tiny_bundle, trained):
    with pytest.raises(InputError, match=part):
        compare(tiny_bundle, trained, **changes)


def test_a_pack_with_fewer_images_than_asked_for_says_how_many(tiny_bundle, trained):
    found = compare(tiny_bundle, trained, num_samples=64, widths=(0.5,), lambdas=(0.0, 1.0))
    assert found.settings["num_samples"] == 24 == found.settings["num_samples_one_lambda"]
    assert [row.num_pairs for row in found.rows] == [48, 24]


def test_a_dedicated_network_is_compared_at_its_one_lambda(tmp_path):
    from oat_edge.exporters.config import ExportConfig
    from oat_edge.exporters.export import export_bundle
    from oat_edge.train.checkpoint import Checkpoint
    from tests.conftest import make_network, spec_of

    options = {"lambdas": (0.3,), "widths": (1.0,)}
    dedicated = Checkpoint(make_network(**options), spec_of(**options), {}, "run", "c" * 64)
    config = ExportConfig(widths=(1.0,), attack_samples=0)
    bundle = export_bundle(dedicated, config, tmp_path / "dedicated", dataset=None)
    for checkpoint in (dedicated, None):
        found = compare(bundle, checkpoint)
        assert found.failed == [] and len(found.rows) == 2
        assert [[one.lam for one in row.by_lambda] for row in found.rows] == [[0.3], [0.3]]
        assert [row.num_pairs for row in found.rows] == [24, 24]


def test_the_named_run_must_be_the_one(tiny_bundle, tiny_run, trained_run, tmp_path, monkeypatch):
    loaded, reason = find_checkpoint(tiny_bundle, tiny_run)
    assert loaded is not None and loaded.sha256 == tiny_bundle.checkpoint_sha256
    assert reason is None
    with pytest.raises(InputError, match="is not what bundle tiny was made from"):
        find_checkpoint(tiny_bundle, trained_run)
    with pytest.raises(InputError, match="there is no checkpoint"):
        find_checkpoint(tiny_bundle, tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    loaded, reason = find_checkpoint(tiny_bundle, None)
    assert loaded is None and "no run in runs/ has checkpoint" in reason
