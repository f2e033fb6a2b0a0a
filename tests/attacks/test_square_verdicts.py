from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from oat_edge.attacks.square import square_attack
from oat_edge.evaluation.accuracy import to_float
from tests.attacks.test_square import SHAPES, linear, random_problem


def smallest_margins(
    weights: npt.NDArray[np.int64],
    bias: npt.NDArray[np.int64],
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    radius: int,
) -> npt.NDArray[np.int64]:
    """(N, K) over the ball, of each image against each class: a box, so pixel by pixel."""
    flat = images.reshape(len(images), -1).astype(np.int64)
    low, high = np.clip(flat - radius, 0, 255), np.clip(flat + radius, 0, 255)
    slope = weights.T[labels][:, None] - weights.T[None]  # (N, K, pixels)
    reach = np.minimum(slope * low[:, None], slope * high[:, None]).sum(axis=2)
    smallest: npt.NDArray[np.int64] = reach + bias[labels][:, None] - bias[None]
    return smallest


@given(
    shape=st.tuples(st.just(6), *[st.integers(1, n) for n in (2, 3, 4)]),
    radius=st.integers(1, 60),
    seed=st.integers(0, 9999),
    share=st.floats(0, 1.5),
)
@settings(max_examples=30)
def test_a_linear_classifier_of_two_classes_falls_when_and_only_when_it_can(
    shape: tuple[int, ...], radius: int, seed: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=shape).astype(np.uint8)
    weights = rng.integers(-9, 10, size=(int(np.prod(shape[1:])), 2))
    # The bias puts the border near the reach of the first image's ball.
    scores = (images.reshape(6, -1).astype(np.int64) @ weights) @ [1, -1]
    distance = int(share * radius * np.abs(weights @ [1, -1]).sum())
    bias = np.array([distance - scores[0], 0])
    labels = np.where(scores + bias[0] >= 0, 0, 1)
    result = square_attack(
        linear(weights, bias), images, labels, eps=radius / 255, num_queries=1500
    )
    smallest = smallest_margins(weights, bias, images, labels, radius)[np.arange(6), 1 - labels]
    # At a tie argmax says class 0.
    assert np.array_equal(result.right, smallest >= labels)


@given(shape=SHAPES, radius=st.integers(1, 60), seed=st.integers(0, 9999))
@settings(max_examples=30)
def test_an_image_whose_whole_ball_is_right_is_never_fooled(
    shape: tuple[int, ...], radius: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=shape).astype(np.uint8)
    weights, bias = rng.integers(-9, 10, size=(int(np.prod(shape[1:])), 4)), np.zeros(4, np.int64)
    labels = linear(weights)(to_float(images)).argmax(axis=1)
    smallest = smallest_margins(weights, bias, images, labels, radius)
    smallest[np.arange(len(labels)), labels] = 1
    safe = (smallest > 0).all(axis=1)
    assume(safe.any())
    result = square_attack(linear(weights), images, labels, eps=radius / 255, num_queries=60)
    assert result.right[safe].all()


@pytest.mark.parametrize("classes", [1, 3])
def test_a_constant_classifier_is_never_fooled(classes: int) -> None:
    images = np.zeros((5, 3, 4, 6), dtype=np.uint8)
    result = square_attack(
        lambda x: np.tile(np.eye(1, classes, dtype=np.float32), (len(x), 1)),
        images,
        np.zeros(5, dtype=np.int64),
        eps=8 / 255,
        num_queries=20,
    )
    assert result.right.all() and (result.queries == 20).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.filterwarnings("error")
def test_an_output_that_is_not_finite_is_not_right(bad: float, place: int) -> None:
    """From the third query on; both that and the image that did it are kept."""
    calls: list[Any] = []

    def infer(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        calls.append(x)
        logits = np.tile(np.array([1, 0, 0], dtype=np.float32), (len(x), 1))
        if len(calls) == 3:
            logits[:, place] = bad
        return logits

    images = np.full((2, 1, 4, 4), 100, dtype=np.uint8)
    result = square_attack(infer, images, np.zeros(2, np.int64), eps=8 / 255, num_queries=9)
    assert not result.right.any() and (result.queries == 3).all()
    assert np.array_equal(to_float(result.adversarial), calls[-1])


def test_an_image_that_is_wrong_when_clean_is_attacked_like_the_others() -> None:
    infer, images, labels = random_problem((6, 1, 4, 4), 1)
    result = square_attack(infer, images, (labels + 1) % 3, eps=1 / 255, num_queries=10)
    predicted = infer(to_float(result.adversarial)).argmax(axis=1)
    assert np.array_equal(result.right, predicted == (labels + 1) % 3)


def test_no_images_give_empty_results() -> None:
    images, labels = np.empty((0, 3, 4, 4), dtype=np.uint8), np.empty(0, dtype=np.int64)
    told: list[int] = []
    result = square_attack(
        lambda x: pytest.fail("asked"), images, labels, eps=8 / 255, progress=told.append
    )
    assert result.adversarial.shape == images.shape
    assert len(result.right) == len(result.queries) == 0
    assert sum(told) == 5000
