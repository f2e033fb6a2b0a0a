"""One contract for all runners: the same input, the same output, the same errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from oat_edge.errors import InputError
from oat_edge.nn.fold import fold
from oat_edge.runtime import open_runner
from oat_edge.runtime.runner import RunnerIO
from oat_edge.runtime.torch_runner import TorchRunner
from oat_edge.train.checkpoint import load_checkpoint

PINNED = 1.0
KINDS = ("onnxruntime", "onnxruntime pinned", "torch")
SHAPE = (1, 8, 8)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def make_runner(tiny_bundle, tiny_run):
    def make(kind):
        if kind == "torch":
            checkpoint = load_checkpoint(tiny_run)
            spec = checkpoint.spec
            io = RunnerIO(
                image_shape=spec.image_shape, num_classes=spec.num_classes, lambdas=spec.lambdas
            )
            return TorchRunner(fold(checkpoint.network, 1.0), io)
        pinned = PINNED if kind.endswith("pinned") else None
        return open_runner(tiny_bundle.path, 1.0, pinned_lambda=pinned, threads=1)

    return make


@pytest.fixture(scope="module", params=KINDS)
def runner(request, make_runner):
    with make_runner(request.param) as opened:
        yield opened


def batch(num, seed=0):
    return np.random.default_rng(seed).random((num, *SHAPE), dtype=np.float32)


def lambdas_for(runner, num):
    """Many λ where it is an input, its own where it is pinned."""
    if runner.io.pinned_lambda is not None:
        return np.full(num, runner.io.pinned_lambda, dtype=np.float32)
    return np.resize(np.array([0, 0.3, 1, 0.05, 0.1, 0.77], dtype=np.float32), num)


def test_it_says_what_really_runs(runner):
    assert runner.device == "cpu" and runner.precision == "fp32"
    assert runner.backend.split("-")[0] in runner.versions
    assert runner.io.image_shape == SHAPE and runner.io.num_classes == 10


@pytest.mark.parametrize("num", [1, 2, 5, 17])
def test_a_batch_equals_its_images_one_by_one_whatever_their_lambda(runner, num):
    images, lam = batch(num), lambdas_for(runner, num)
    logits = runner.infer(images, lam)
    assert logits.shape == (num, 10) and logits.dtype == np.float32
    alone = [runner.infer(images[i : i + 1], lam[i : i + 1])[0] for i in range(num)]
    np.testing.assert_allclose(logits, alone, atol=TOLERANCE)


def test_lambda_matters_where_it_is_an_input(runner):
    if runner.io.pinned_lambda is None:
        low, high = runner.infer(batch(2), 0.0), runner.infer(batch(2), 1.0)
        assert np.abs(low - high).max() > 1e-2
    else:
        np.testing.assert_array_equal(runner.infer(batch(2)), runner.infer(batch(2), PINNED))


def test_runners_agree(make_runner):
    images = batch(5)
    with (
        make_runner(KINDS[0]) as knob,
        make_runner(KINDS[1]) as pinned,
        make_runner("torch") as ref,
    ):
        expected = ref.infer(images, 1.0)
        np.testing.assert_allclose(knob.infer(images, 1.0), expected, atol=1e-4)
        np.testing.assert_allclose(pinned.infer(images), expected, atol=1e-4)
        lam = lambdas_for(knob, 5)
        np.testing.assert_allclose(knob.infer(images, lam), ref.infer(images, lam), atol=1e-4)


def views(images):
    """The same values, laid out in memory in other ways."""
    padded = np.zeros((len(images), 1, 8, 16), dtype=np.float32)
    padded[..., ::2] = images
    read_only = images.copy()
    read_only.flags.writeable = False
    return {
        "reversed": np.ascontiguousarray(images[:, :, ::-1, ::-1])[:, :, ::-1, ::-1],
        "strided": padded[..., ::2],
        "transposed": np.ascontiguousarray(images.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0),
        "fortran": np.asfortranarray(images),
        "every other": np.repeat(images, 2, axis=0)[::2],
        "read-only": read_only,
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", list(views(batch(1))))
def test_the_layout_in_memory_does_not_matter(runner, layout):
    images, lam = batch(3), lambdas_for(runner, 3)
    expected = runner.infer(images, lam)
    np.testing.assert_array_equal(runner.infer(views(images)[layout], lam), expected)
    np.testing.assert_array_equal(runner.infer(images, np.repeat(lam, 2)[::2]), expected)
    np.testing.assert_array_equal(runner.infer(images, lam[::-1].copy()[::-1]), expected)
    one = np.broadcast_to(np.float32(PINNED), (3,))
    np.testing.assert_array_equal(runner.infer(images, one), runner.infer(images, PINNED))


def test_the_input_is_not_changed_and_the_output_is_the_caller_s(runner):
    images, lam = batch(3), lambdas_for(runner, 3)
    kept = images.copy(), lam.copy()
    first = runner.infer(images, lam)
    saved = first.copy()
    first[:] = 7
    np.testing.assert_array_equal(runner.infer(images, lam), saved)
    runner.infer(batch(3, seed=1), lam)
    assert (first == 7).all()
    np.testing.assert_array_equal(images, kept[0])
    np.testing.assert_array_equal(lam, kept[1])


@pytest.mark.parametrize(
    "number", [1, 1.0, np.float32(1), np.float64(1), np.float16(1), np.int64(1), np.uint8(1)]
)
def test_any_real_number_is_a_lambda_for_all(runner, number):
    expected = runner.infer(batch(2), np.ones(2, dtype=np.float32))
    np.testing.assert_array_equal(runner.infer(batch(2), number), expected)


def refused(runner, images, lam, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        runner.infer(images, lam)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lam", "pattern"),
    [
        (float("nan"), "lambda is nan: expected"),
        (np.float32("nan"), "lambda is nan: expected"),
        (-0.1, r"lambda is -0\.1"),
        (1.5, r"lambda is 1\.5: expected"),
        (float("inf"), "lambda is inf"),
        (2, "lambda is 2"),
        (np.array([1, np.nan], dtype=np.float32), "lambda is nan"),
        (np.array([1, 1.5], dtype=np.float32), r"lambda is 1\.5"),
        (np.ones(3, dtype=np.float32), r"lambda has shape \(3,\): expected \(2,\)"),
        (np.ones(1, dtype=np.float32), r"lambda has shape \(1,\): expected \(2,\)"),
        (np.ones((2, 1), dtype=np.float32), r"lambda has shape \(2, 1\)"),
        (np.ones((), dtype=np.float32), r"lambda has shape \(\)"),
        (np.ones(0, dtype=np.float32), r"lambda has shape \(0,\)"),
        (np.ones(2), "lambda is float64: expected a number or a float32 array"),
        (np.ones(2, dtype=np.float16), "lambda is float16"),
        (np.ones(2, dtype=int), "lambda is int64"),
        (np.ones(2, dtype=">f4"), "lambda is >f4"),
        ([1.0, 1.0], "lambda is list: expected a number or a float32 array"),
        ((1.0, 1.0), "lambda is tuple"),
        ("1", "lambda is str"),
        (1j, "lambda is complex"),
    ],
)  # fmt: skip
def test_another_lambda_is_an_input_error(runner, lam, pattern):
    refused(runner, batch(2), lam, pattern)


@pytest.mark.parametrize(
    ("images", "pattern"),
    [
        (batch(2).astype(np.float64), "image is float64: expected a float32 array"),
        (batch(2).astype(np.float16), "image is float16"),
        ((batch(2) * 255).astype(np.uint8), "image is uint8"),
        (batch(2).astype(">f4"), "image is >f4"),
        (batch(2).tolist(), "image is list"),
        (None, "image is NoneType"),
        (batch(2)[0], r"image has shape \(1, 8, 8\): expected \(N, 1, 8, 8\)"),
        (batch(0), r"image has shape \(0, 1, 8, 8\): .* N >= 1"),
        (np.zeros((2, 3, 8, 8), dtype=np.float32), r"image has shape \(2, 3, 8, 8\)"),
        (np.zeros((2, 8, 8, 1), dtype=np.float32), r"image has shape \(2, 8, 8, 1\)"),
        (np.zeros((2, 1, 8, 9), dtype=np.float32), r"image has shape \(2, 1, 8, 9\)"),
        (np.zeros((2, 1, 1, 8, 8), dtype=np.float32), r"image has shape \(2, 1, 1, 8, 8\)"),
    ],
)  # fmt: skip
def test_another_image_is_an_input_error(runner, images, pattern):
    refused(runner, images, PINNED, pattern)


def test_no_lambda_is_an_input_error_where_it_is_an_input(runner):
    if runner.io.pinned_lambda is None:
        refused(runner, batch(1), None, "lambda is missing: pass a number")
    else:
        refused(runner, batch(1), 0.3, r"lambda is 0\.3.*: expected 1 ")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    images=stnp.arrays(
        st.sampled_from([np.float32, np.float64, np.uint8]),
        stnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=8),
        elements=st.integers(0, 1),
    ),
    lam=st.none()
    | st.floats(width=32)
    | st.text(max_size=2)
    | stnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64]),
        stnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3),
        elements=st.integers(-1, 1),
    ),
)
def test_whatever_is_passed_gives_logits_or_an_input_error(runner, images, lam):
    for image in (images, batch(2)):
        try:
            logits = runner.infer(image, lam)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert logits.shape == (len(image), 10) and np.isfinite(logits).all()


@pytest.mark.parametrize("kind", KINDS)
def test_after_close_a_runner_says_so(kind, make_runner):
    runner = make_runner(kind)
    with runner as entered:
        assert entered is runner and not runner.closed
        runner.infer(batch(1), PINNED)
    assert runner.closed
    refused(runner, batch(1), PINNED, "runner is closed: open it again")
    runner.close()  # twice is once
