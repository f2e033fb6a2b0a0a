from __future__ import annotations

import numpy as np
import pytest

from oat_edge.bench.profile import profile_artifact
from oat_edge.runtime import open_artifact


@pytest.fixture
def opened(bundle):
    artifact = bundle.select(format="onnx", width=0.5)
    with open_artifact(bundle, artifact, threads=1) as runner:
        yield artifact, runner


def images(*batches):
    return {batch: np.full((batch, 1, 4, 4), 0.5, dtype=np.float32) for batch in batches}


def test_smallest_and_largest_batch_are_looked_at_in_the_order_of_the_graph(opened):
    artifact, runner = opened
    profiles = profile_artifact(artifact, runner, images(4, 1, 2), runs=2)
    assert [one.batch for one in profiles] == [1, 4]
    for one in profiles:
        kinds = [layer.kind for layer in one.layers]
        assert kinds.index("Flatten") < kinds.index("MatMul") < kinds.index("Add")
        assert all(layer.ms >= 0 and 0 <= layer.share <= 1 for layer in one.layers)
        assert one.total_ms > 0


def test_one_batch_is_looked_at_once(opened):
    (one,) = profile_artifact(*opened, images(3), runs=1)
    assert one.batch == 3 and one.artifact == opened[0].file and one.backend == "onnxruntime-cpu"
