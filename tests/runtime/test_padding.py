from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.runtime.padding import request_size, steady
from oat_edge.runtime.runner import Runner, RunnerIO


class Sums(Runner):
    """logits = (sum of the image, λ); remembers the sizes of its requests."""

    def __init__(self, device, batch_limit=None):
        self.io = RunnerIO(image_shape=(1, 2, 2), num_classes=2, lambdas=(0.0, 1.0))
        self.backend, self.device, self.precision, self.versions = "sums", device, "fp32", {}
        self.batch_limit = batch_limit
        self.sizes = []

    def _run(self, image, lam):
        self.sizes.append(len(image))
        return np.stack([image.sum(axis=(1, 2, 3)), lam], axis=1)


def images(num):
    return np.random.default_rng(num).random((num, 1, 2, 2), dtype=np.float32)


@given(num=st.integers(1, 40))
def test_a_gpu_is_given_powers_of_two_and_the_caller_what_was_asked_for(num):
    runner = Sums("cuda")
    logits = steady(runner)(images(num), 0.25)
    (size,) = runner.sizes
    assert size >= num and size & (size - 1) == 0 and size < 2 * num
    np.testing.assert_array_equal(logits, Sums("cpu").infer(images(num), 0.25))


def test_a_cpu_is_given_what_comes():
    runner = Sums("cpu")
    for num in (1, 3, 5):
        steady(runner)(images(num), 0.0)
    assert runner.sizes == [1, 3, 5]


@given(num=st.integers(1, 64), most=st.one_of(st.none(), st.integers(1, 64)))
def test_no_request_is_larger_than_the_runner_takes_unless_it_was_asked_for(num, most):
    size = request_size(num, most=most)
    assert size >= num
    if most is not None and num <= most:
        assert size <= most


@pytest.mark.parametrize("limit", [3, 5])
def test_requests_stay_within_the_limit_of_the_engine(limit):
    runner = Sums("cuda", batch_limit=limit)
    steady(runner)(images(limit), 0.0)
    steady(runner)(images(limit - 1), 0.0)
    assert max(runner.sizes) <= limit
