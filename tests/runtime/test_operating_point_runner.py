"""open_runner(operating_point=…) on a real bundle."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from oat_edge import open_runner
from oat_edge.bundle import Bundle
from oat_edge.calib.decision import decided
from oat_edge.calib.goal import Goal
from oat_edge.calib.reports import measured_points, of_device, read_reports
from oat_edge.errors import InputError
from tests.calib.points import make_bundle, report_of, save


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny-run")


@pytest.fixture(scope="module")
def measured(bundle, tmp_path_factory):
    path = save(report_of(bundle), tmp_path_factory.mktemp("reports") / "report.json")
    return measured_points(of_device(read_reports([path]), None), pinned=True)


@pytest.fixture(scope="module")
def point(measured):
    """Width 0.5 at λ = 0.3, with λ as an input."""
    (chosen,) = [p for p in measured.points if p.width == 0.5 and p.lam == 0.3 and not p.pinned]
    return decided(chosen, measured.points, Goal(), measured)


@pytest.fixture
def image():
    return np.random.default_rng(0).random((5, 1, 4, 4), dtype=np.float32)


def test_it_opens_the_file_and_its_lambda_is_the_usual_one(bundle, point, image, tmp_path):
    point.save(tmp_path / "p.json")
    with open_runner(bundle.path, 0.5, threads=1) as plain:
        expected = {lam: plain.infer(image, lam) for lam in (0.3, 0.9)}
        with pytest.raises(InputError, match="lambda is missing"):
            plain.infer(image)
    for given in (point, tmp_path / "p.json", str(tmp_path / "p.json")):
        with open_runner(bundle.path, operating_point=given) as runner:
            assert np.array_equal(runner.infer(image), expected[0.3])
            assert np.array_equal(runner.infer(image, 0.9), expected[0.9])
            mixed = np.float32([0.9, 0.3, 0.9, 0.3, 0.9])
            found = runner.infer(image, mixed)
            assert np.allclose(found[0::2], expected[0.9][0::2], atol=1e-6)
    assert not np.array_equal(expected[0.3], expected[0.9])


def test_a_pinned_file_keeps_its_own_lambda(bundle, measured, image):
    (chosen,) = [p for p in measured.points if p.pinned]
    file = decided(chosen, measured.points, Goal(), measured)
    with open_runner(bundle.path, operating_point=file) as runner:
        assert runner.io.pinned_lambda == 0.3
        found = runner.infer(image)
        assert np.array_equal(found, runner.infer(image, 0.3))
        with pytest.raises(InputError, match="all this network has"):
            runner.infer(image, 0.9)


@pytest.mark.parametrize(
    "more", [{"width": 0.5}, {"format": "onnx"}, {"precision": "fp32"}, {"pinned_lambda": 0.3}]
)
def test_what_the_operating_point_says_is_not_said_twice(more, bundle, point):
    name, value = next(iter(more.items()))
    with pytest.raises(InputError, match=f"an operating point and {name}={value!r}"):
        open_runner(bundle.path, operating_point=point, **more)


def test_another_network_or_file_is_refused(bundle, point):
    for changes, part in (
        ({"checkpoint_sha256": "d" * 64}, "is of checkpoint dddddddddddd…"),
        ({"artifact": "w0.75-fp32.onnx"}, "has no w0.75-fp32.onnx"),
        ({"sha256": "e" * 64}, "is not the file that was measured"),
    ):
        with pytest.raises(InputError, match=part):
            open_runner(bundle.path, operating_point=dataclasses.replace(point, **changes))


def test_a_file_whose_content_has_changed_is_not_opened(bundle, point, tmp_path):
    copy = Bundle.open(shutil.copytree(bundle.path, tmp_path / "b"))
    file = copy.path / point.artifact
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(InputError, match="is damaged"):
        open_runner(copy.path, operating_point=point)


def test_threads_are_those_that_were_measured_unless_given(bundle, point, monkeypatch):
    from oat_edge.runtime import ort

    asked = []
    real = ort.OrtRunner.__init__

    def noted(self, *arguments, threads, **more):
        asked.append(threads)
        real(self, *arguments, threads=threads, **more)

    monkeypatch.setattr(ort.OrtRunner, "__init__", noted)
    assert point.threads == 1
    two = dataclasses.replace(point, threads=2)
    for file, more in ((point, {}), (two, {}), (two, {"threads": 1})):
        open_runner(bundle.path, operating_point=file, **more).close()
    assert asked == [1, 2, 1]


def test_without_an_operating_point_the_device_is_still_the_cpu(bundle):
    with open_runner(bundle.path) as runner:
        assert runner.device == "cpu" and runner.default_lambda is None
