from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.attacks.square import SquareResult, square_attack
from oat_edge.bundle import Bundle
from oat_edge.data import Dataset
from oat_edge.errors import InputError
from oat_edge.evaluation.accuracy import to_float
from oat_edge.runtime import open_runner

Infer = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


SHAPES = st.tuples(*[st.integers(1, n) for n in (9, 4, 7, 7)])


def linear(weights: npt.NDArray[np.int64], bias: npt.NDArray[np.int64] | int = 0) -> Infer:
    """Logits from 8-bit levels in integers: exact, and the same in any batch."""

    def infer(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        pixels = np.rint(x * 255).astype(np.int64).reshape(len(x), -1)
        return (pixels @ weights + bias).astype(np.float32)

    return infer


def random_problem(
    shape: tuple[int, ...], seed: int, classes: int = 3
) -> tuple[Infer, npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """A linear classifier with images that it has right, some of them close to its borders."""
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=shape).astype(np.uint8)
    infer = linear(rng.integers(-9, 10, size=(int(np.prod(shape[1:])), classes)))
    return infer, images, infer(to_float(images)).argmax(axis=1)


def same(a: SquareResult, b: SquareResult) -> bool:
    pairs = ((a.adversarial, b.adversarial), (a.right, b.right), (a.queries, b.queries))
    return all(np.array_equal(x, y) for x, y in pairs)


@given(
    shape=SHAPES,
    eps=st.one_of(st.floats(1 / 255, 2), st.integers(1, 255).map(lambda k: k / 255)),
    num_queries=st.integers(1, 40),
    p_init=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
def test_images_stay_in_the_ball_in_integers_and_right_is_what_the_network_says(
    shape: tuple[int, ...], eps: float, num_queries: int, p_init: float, seed: int
) -> None:
    infer, images, labels = random_problem(shape, seed)
    before = images.copy()
    result = square_attack(
        infer, images, labels, eps=eps, num_queries=num_queries, p_init=p_init, seed=seed
    )
    assert np.array_equal(images, before)
    assert result.adversarial.dtype == np.uint8 and result.adversarial.shape == shape
    radius, wide = int(eps * 255 + 1e-6), images.astype(np.int64)
    assert np.abs(result.adversarial - wide).max() <= radius
    ends = np.clip(wide - radius, 0, 255), np.clip(wide + radius, 0, 255)
    assert ((result.adversarial == ends[0]) | (result.adversarial == ends[1])).all()
    predicted = infer(to_float(result.adversarial)).argmax(axis=1)
    assert np.array_equal(result.right, predicted == labels)
    assert (result.queries[result.right] == num_queries).all()
    assert result.queries.min() >= 1 and result.queries.max() <= num_queries


@given(
    shape=SHAPES,
    seed=st.integers(0, 99),
    batches=st.tuples(st.integers(1, 10), st.integers(1, 10)),
)
def test_the_seed_alone_decides_at_any_batch_size(
    shape: tuple[int, ...], seed: int, batches: tuple[int, int]
) -> None:
    infer, images, labels = random_problem(shape, seed)
    results = [
        square_attack(
            infer, images, labels, eps=8 / 255, num_queries=25, seed=seed, batch_size=size
        )
        for size in batches
    ]
    assert same(*results)


@given(shape=SHAPES, seed=st.integers(0, 99))
def test_an_image_is_searched_alike_whatever_becomes_of_the_others(
    shape: tuple[int, ...], seed: int
) -> None:
    infer, images, labels = random_problem(shape, seed)
    others = labels.copy()
    others[0] = (others[0] + 1) % 3  # fooled at once, or at another time
    first, second = (
        square_attack(infer, images, y, eps=8 / 255, num_queries=25) for y in (labels, others)
    )
    for name in ("adversarial", "right", "queries"):
        assert np.array_equal(getattr(first, name)[1:], getattr(second, name)[1:])


def test_another_seed_gives_another_search() -> None:
    infer, images, labels = random_problem((4, 1, 8, 8), 0)
    first, second = (
        square_attack(infer, images, labels, eps=1 / 255, num_queries=5, seed=s) for s in (0, 1)
    )
    assert not same(first, second)


@given(
    patience=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    num_queries=st.integers(1, 25),
    batch_size=st.integers(1, 9),
)
def test_an_image_is_queried_until_it_fools_the_network_and_never_past_the_budget(
    patience: list[int], num_queries: int, batch_size: int
) -> None:
    """The network gives in at an image's own n-th query; images are told apart by brightness."""
    images = np.empty((len(patience), 1, 3, 5), dtype=np.uint8)
    images[:] = 20 * np.arange(1, len(patience) + 1)[:, None, None, None]
    seen: list[list[npt.NDArray[np.float32]]] = [[] for _ in patience]

    def infer(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        assert 1 <= len(x) <= batch_size and x.dtype == np.float32
        assert x.min() >= 0 and x.max() <= 1
        logits = np.zeros((len(x), 2), dtype=np.float32)
        for image, row in zip(x, logits, strict=True):
            place = round(float(image.mean()) * 255 / 20) - 1
            seen[place].append(image)
            row[len(seen[place]) >= patience[place]] = 0
            row[int(len(seen[place]) >= patience[place])] = 1
        return logits

    told: list[int] = []
    result = square_attack(
        infer,
        images,
        np.zeros(len(patience), dtype=np.int64),
        eps=4 / 255,
        num_queries=num_queries,
        batch_size=batch_size,
        progress=told.append,
    )
    expected = np.minimum(patience, num_queries)
    assert np.array_equal(result.queries, expected)
    assert [len(one) for one in seen] == expected.tolist()
    assert np.array_equal(result.right, np.array(patience) > num_queries)
    for one, adversarial, right in zip(seen, result.adversarial, result.right, strict=True):
        # No margin but the last differs from the first: nothing else was worth keeping.
        assert np.array_equal(one[0 if right else -1], to_float(adversarial))
        assert all((a != one[0]).any() for a in one[1:]), "a query that changes nothing is wasted"
    assert sum(told) == num_queries


@given(shape=SHAPES, seed=st.integers(0, 99), num_queries=st.integers(2, 60))
def test_the_margin_never_ends_above_that_of_the_stripes(
    shape: tuple[int, ...], seed: int, num_queries: int
) -> None:
    """More queries stretch the schedule, so that runs share their first image only."""
    infer, images, labels = random_problem(shape, seed, classes=2)
    stripes, result = (
        square_attack(infer, images, labels, eps=3 / 255, num_queries=n, seed=seed)
        for n in (1, num_queries)
    )
    first, last = (margins(infer, r.adversarial, labels) for r in (stripes, result))
    assert not (result.right & ~stripes.right).any()
    assert np.array_equal(result.adversarial[~stripes.right], stripes.adversarial[~stripes.right])
    assert (last <= first).all()


@given(shape=SHAPES, seed=st.integers(0, 99))
def test_what_is_kept_is_the_image_of_smallest_margin_that_was_tried(
    shape: tuple[int, ...], seed: int
) -> None:
    infer, images, labels = random_problem((1, *shape[1:]), seed, classes=2)
    tried: list[float] = []

    def watched(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        tried.extend(margins(infer, np.rint(x * 255).astype(np.uint8), labels))
        return infer(x)

    result = square_attack(watched, images, labels, eps=4 / 255, num_queries=40, seed=seed)
    assert len(tried) == result.queries.sum()
    assert margins(infer, result.adversarial, labels) == [min(tried)]


def test_squares_shrink_by_the_published_schedule_and_reach_every_place() -> None:
    """Where nothing helps, each query is the stripes with one square in it.

    The stripes are vertical: a square that changes anything changes all of its rows.
    """
    tried: list[npt.NDArray[np.float32]] = []

    def infer(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        tried.extend(x[:, 0])
        return np.tile(np.array([1, 0], dtype=np.float32), (len(x), 1))

    images, labels = np.full((1, 1, 20, 30), 100, dtype=np.uint8), np.zeros(1, dtype=np.int64)
    square_attack(infer, images, labels, eps=4 / 255, num_queries=2000, p_init=0.5)
    changed = np.array([one != tried[0] for one in tried[1:]])
    # The paper's halvings at 10, 50, 200, ... of 10,000, here of 2,000.
    until = [2, 10, 40, 100, 200, 400, 800, 1200, 1600, 1999]
    expected = np.repeat([17, 12, 9, 6, 4, 3, 2, 2, 1, 1], np.diff([0, *until]))
    assert np.array_equal(changed.any(axis=2).sum(axis=1), expected)
    assert (changed.any(axis=1).sum(axis=1) <= expected).all()
    assert changed[1599:].any(axis=(0, 1)).all() and changed[1599:].any(axis=(0, 2)).all()


def margins(
    infer: Infer, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Of two classes."""
    logits, rows = infer(to_float(images)), np.arange(len(labels))
    difference: npt.NDArray[np.float32] = logits[rows, labels] - logits[rows, 1 - labels]
    return difference


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 0.9 / 255}, "under one 8-bit level"),
        ({"num_queries": 0}, "num_queries is 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"p_init": 0}, "p_init is 0"),
        ({"p_init": 1.1}, r"p_init is 1\.1"),
        ({"images": np.zeros((2, 1, 4, 4), dtype=np.float32)}, r"images are float32\(2, 1, 4, 4\)"),
        ({"images": np.zeros((2, 4, 4), dtype=np.uint8)}, r"uint8\(2, 4, 4\)"),
        ({"labels": np.zeros(3, dtype=np.int64)}, r"labels \(3,\)"),
    ],
)
def test_what_cannot_be_attacked_is_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "images": np.zeros((2, 1, 4, 4), dtype=np.uint8),
        "labels": np.zeros(2, dtype=np.int64),
        "eps": 8 / 255,
    }
    with pytest.raises(InputError, match=message):
        square_attack(lambda x: pytest.fail("asked"), **given | changes)


def test_it_attacks_an_exported_network_in_onnx_runtime(
    tiny_bundle: Bundle, digits: Dataset
) -> None:
    with open_runner(tiny_bundle.path, 1.0, threads=1) as runner:

        def infer(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            return runner.infer(x, 0.3)

        clean = infer(to_float(digits.test.images)).argmax(axis=1) == digits.test.labels
        images, labels = digits.test.images[clean][:60], digits.test.labels[clean][:60]
        eps = tiny_bundle.spec.eps
        stripes, result = (
            square_attack(infer, images, labels, eps=eps, num_queries=n) for n in (1, 200)
        )
        predicted = infer(to_float(result.adversarial)).argmax(axis=1)
    assert np.array_equal(result.right, predicted == labels)
    assert result.right.sum() < stripes.right.sum() < len(labels)


def test_it_needs_numpy_only(child_environment: dict[str, str], tmp_path: Path) -> None:
    code = """
import sys
for name in ("torch", "onnxruntime", "scipy", "sklearn"):
    sys.modules[name] = None
import numpy as np
from oat_edge.attacks.square import square_attack
result = square_attack(
    lambda x: np.stack([x[:, 0, 0, 0], 1 - x[:, 0, 0, 0]], axis=1),
    np.full((1, 1, 2, 2), 130, dtype=np.uint8), np.zeros(1, dtype=np.int64),
    eps=8 / 255, num_queries=50,
)
print(result.right, result.queries[0] <= 50)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=child_environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[False] True\n", done.stderr
