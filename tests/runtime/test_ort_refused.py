from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys

import onnx
import pytest

from oat_edge.bundle import Bundle, save_manifest
from oat_edge.errors import InputError
from oat_edge.files import sha256_file
from oat_edge.runtime import open_artifact, open_runner
from oat_edge.runtime.ort import OrtRunner
from tests.runtime.test_ort import change_model


@pytest.fixture
def forge(tiny_bundle, tmp_path):
    """Copy the bundle with one network changed, and a manifest that vouches for the change."""

    def make(content, width=0.5):
        folder = tmp_path / "forged"
        shutil.copytree(tiny_bundle.path, folder, dirs_exist_ok=True)
        artifact = tiny_bundle.select(format="onnx", width=width)
        (folder / artifact.file).write_bytes(content)
        new = dataclasses.replace(artifact, sha256=sha256_file(folder / artifact.file))
        artifacts = tuple(new if a == artifact else a for a in tiny_bundle.artifacts)
        bundle = dataclasses.replace(tiny_bundle, path=folder, artifacts=artifacts)
        save_manifest(bundle)
        return folder

    return make


@pytest.fixture(scope="module")
def network_bytes(tiny_bundle):
    artifact = tiny_bundle.select(format="onnx", width=0.5)
    return tiny_bundle.checked_path(artifact).read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_behind_a_forged_manifest_does_not_load(share, network_bytes, forge):
    folder = forge(network_bytes[: int(len(network_bytes) * share)])
    with pytest.raises(InputError, match=r"w0\.50-fp32\.onnx (does not load|has inputs)"):
        open_runner(folder, 0.5)


FLIPS = """
import sys
from pathlib import Path
import numpy as np
from oat_edge.errors import InputError
from oat_edge.runtime.ort import OrtRunner
from oat_edge.runtime.runner import RunnerIO
path, scratch = Path(sys.argv[1]), Path(sys.argv[2])
io = RunnerIO(image_shape=(1, 8, 8), num_classes=10, lambdas=(0.0, 0.1, 0.2, 0.3, 0.4, 1.0))
content, generator = path.read_bytes(), np.random.default_rng(0)
image = np.full((1, 1, 8, 8), 0.5, dtype=np.float32)
counts = {"runs": 0, "refused": 0}
# The graph stands before and after the weights: flip there, where it hurts.
places = [*generator.integers(0, 30_000, 60), *generator.integers(-3000, 0, 60)]
for place in places:
    damaged = bytearray(content)
    damaged[place] ^= 1 << int(generator.integers(8))
    scratch.write_bytes(damaged)
    try:
        with OrtRunner(scratch, io, threads=1) as runner:
            assert runner.infer(image, 0.3).shape == (1, 10)
        counts["runs"] += 1
    except InputError as error:
        assert "\\n" not in str(error), str(error)
        counts["refused"] += 1
print(counts["runs"], counts["refused"])
"""


def test_flipped_bits_that_no_hash_guards_run_or_are_refused(
    tiny_bundle, tmp_path, child_environment
):
    path = tiny_bundle.checked_path(tiny_bundle.select(format="onnx", width=0.5))
    done = subprocess.run(
        [sys.executable, "-c", FLIPS, path, tmp_path / "flipped.onnx"],
        env=child_environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    runs, refused = map(int, done.stdout.splitlines()[-1].split())  # onnxruntime may print, too
    assert runs + refused == 120 and refused > 10


def rename_output(model):
    (node,) = [node for node in model.graph.node if "logits" in node.output]
    node.output[0] = model.graph.output[0].name = "scores"


def other_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 9


def wide_lambda(model):
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


@pytest.mark.parametrize("change", [rename_output, other_size, wide_lambda])
def test_a_graph_with_another_contract_is_refused(change, network_bytes, forge):
    folder = forge(change_model(network_bytes, change))
    with pytest.raises(InputError, match=r"w0\.50-fp32\.onnx (has|does not load)"):
        open_runner(folder, 0.5)


def test_a_pinned_file_is_not_taken_for_one_with_a_knob(tiny_bundle):
    pinned = tiny_bundle.select(format="onnx", width=0.5, pinned_lambda=1.0)
    artifact = dataclasses.replace(pinned, pinned_lambda=None)
    with pytest.raises(InputError, match=r"has inputs .* expected .*lambda.*: export again"):
        open_artifact(tiny_bundle, artifact)


def test_another_number_of_classes_is_refused(tiny_bundle):
    artifact = tiny_bundle.select(format="onnx", width=0.5)
    with open_artifact(tiny_bundle, artifact) as whole:
        io = dataclasses.replace(whole.io, num_classes=7)
    with pytest.raises(InputError, match=r"has outputs .*expected logits of 7 classes"):
        OrtRunner(tiny_bundle.checked_path(artifact), io)


def test_a_changed_file_is_refused_before_it_is_loaded(tiny_bundle, tmp_path, network_bytes):
    folder = tmp_path / "changed"
    shutil.copytree(tiny_bundle.path, folder)
    (folder / "w0.50-fp32.onnx").write_bytes(network_bytes[:-1] + b"\x00")
    with pytest.raises(InputError, match="is damaged"):
        open_runner(folder, 0.5)
    assert Bundle.open(folder).artifacts == Bundle.open(tiny_bundle.path).artifacts
