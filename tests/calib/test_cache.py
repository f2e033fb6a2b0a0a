from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from oat_edge.calib.batches import CalibrationSet
from oat_edge.calib.cache import cache_path, cached_ranges, range_key
from oat_edge.calib.ranges import Ranges, collect_ranges

SETTINGS: dict[str, Any] = {"method": "minmax", "percentile": 99.9, "symmetric": False}
TENSORS = ["negative", "image"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "oat-edge" / "ranges"


def made_model(name: str = "made") -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Neg", ["image"], ["negative"]),
            helper.make_node("Identity", ["negative"], ["logits"]),
        ],
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def made_set(lam: float = 0.0) -> CalibrationSet:
    return CalibrationSet(
        images=np.random.default_rng(0).integers(0, 256, (20, 1, 2, 2), dtype=np.uint8),
        lam=np.full(20, lam, dtype=np.float32),
        adversarial=np.zeros(20, dtype=bool),
        labels=np.zeros(20, dtype=np.int64),
        indices=np.arange(20),
        settings={},
    )


class Computed:
    """collect_ranges, counted."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, *arguments: Any, **settings: Any) -> Ranges:
        self.times += 1
        return collect_ranges(*arguments, **settings)


@pytest.fixture
def compute() -> Computed:
    return Computed()


def path_of(**changes: Any) -> Path:
    return cache_path(range_key(made_model(), TENSORS, made_set(), **(SETTINGS | changes)))


def test_a_hit_is_not_computed(compute: Computed) -> None:
    said: list[str] = []
    arguments = (made_model(), TENSORS, made_set())
    first = cached_ranges(*arguments, **SETTINGS, compute=compute, say=said.append)
    again = cached_ranges(*arguments, **SETTINGS, compute=compute, say=said.append)
    assert compute.times == 1 and said == []
    assert first == again == collect_ranges(*arguments, **SETTINGS)
    assert list(first) == list(again) == TENSORS


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "percentile"},
        {"symmetric": True},
        {"tensors": ["image"]},
        {"calibration": made_set(1.0)},
        {"calibration": dataclasses.replace(made_set(), settings={"seed": 1})},
        {"model": made_model("another")},
    ],
)
def test_another_key_misses(compute: Computed, changes: dict[str, Any]) -> None:
    base = {"model": made_model(), "tensors": TENSORS, "calibration": made_set(), **SETTINGS}
    cached_ranges(**base, compute=compute)
    cached_ranges(**(base | changes), compute=compute)
    assert compute.times == 2


def test_percentile_counts_only_where_it_is_used() -> None:
    assert path_of(percentile=90.0) == path_of()
    assert path_of(percentile=90.0, method="percentile") != path_of(method="percentile")


def test_another_onnxruntime_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    before = path_of()
    monkeypatch.setattr("onnxruntime.__version__", "0.0")
    assert path_of() != before


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_any_flipped_byte_is_noticed(compute: Computed, place: int, flip: int) -> None:
    arguments = (made_model(), TENSORS, made_set())
    truth = cached_ranges(*arguments, **SETTINGS, compute=compute)
    path = path_of()
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place % len(damaged)] ^= flip
    path.write_bytes(bytes(damaged))
    said: list[str] = []
    before = compute.times
    assert cached_ranges(*arguments, **SETTINGS, compute=compute, say=said.append) == truth
    assert compute.times == before + 1
    assert len(said) == 1 and "damaged: computing them again" in said[0]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{}", b'{"ranges": [1]}', b'{"ranges": {"image": [1, 2, 3]}}',
     b'{"ranges": {"image": [NaN, 1]}}', b"[" * 100_000, b"\xff\xfe"],
)  # fmt: skip
def test_what_is_not_ours_is_not_believed(compute: Computed, content: bytes) -> None:
    path = path_of()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    found = cached_ranges(made_model(), TENSORS, made_set(), **SETTINGS, compute=compute)
    assert compute.times == 1
    assert found == collect_ranges(made_model(), TENSORS, made_set(), **SETTINGS)


def test_a_file_under_another_key_is_not_believed(compute: Computed) -> None:
    arguments = (made_model(), TENSORS, made_set())
    cached_ranges(*arguments, **SETTINGS)
    other = SETTINGS | {"symmetric": True}
    path_of(symmetric=True).write_bytes(path_of().read_bytes())
    found = cached_ranges(*arguments, **other, compute=compute)
    assert compute.times == 1 and found == collect_ranges(*arguments, **other)


def test_many_at_once_do_no_harm(cache: Path) -> None:
    arguments = (made_model(), TENSORS, made_set())

    def one(_: int) -> Ranges:
        return cached_ranges(*arguments, **SETTINGS)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(16)))
    assert all(ranges == found[0] for ranges in found)
    assert [path.name for path in cache.iterdir()] == [path_of().name]


def test_a_folder_that_cannot_be_written_is_no_error(compute: Computed, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    said: list[str] = []
    for _ in range(2):
        found = cached_ranges(
            made_model(), TENSORS, made_set(), **SETTINGS, compute=compute, say=said.append
        )
        assert found == collect_ranges(made_model(), TENSORS, made_set(), **SETTINGS)
    assert compute.times == 2 and any("are not kept" in text for text in said)


def test_nothing_is_kept_of_a_failure(cache: Path) -> None:
    def fails(*arguments: Any, **settings: Any) -> Ranges:
        raise RuntimeError("on the way")

    call: Callable[..., Ranges] = cached_ranges
    with pytest.raises(RuntimeError):
        call(made_model(), TENSORS, made_set(), **SETTINGS, compute=fails)
    assert not cache.exists()
