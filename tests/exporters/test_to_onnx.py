from __future__ import annotations

import getpass
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

import oat_edge
from oat_edge.errors import BuildError
from oat_edge.exporters.to_onnx import export, in_name
from oat_edge.files import sha256_file
from oat_edge.network_spec import NetworkSpec
from oat_edge.nn.fold import fold
from oat_edge.runtime.ort import OrtRunner
from oat_edge.runtime.runner import RunnerIO

ALLOWED = {
    "Add", "Cast", "Clip", "Concat", "Conv", "Div", "Equal", "Gemm", "Greater", "MatMul", "Max",
    "Min", "Mul", "ReduceMean", "Relu", "Reshape", "Sign", "Split", "Sub", "Unsqueeze",
}  # fmt: skip


class Exported:
    def __init__(self, checkpoint, folder, width, pinned_lambda=None):
        self.checkpoint, self.width, self.pinned_lambda = checkpoint, width, pinned_lambda
        self.folded = fold(checkpoint.network, width)
        self.artifact = export(
            self.folded,
            checkpoint.spec,
            width=width,
            folder=folder,
            checkpoint_sha256=checkpoint.sha256,
            pinned_lambda=pinned_lambda,
        )
        self.path = folder / self.artifact.file
        self.model = onnx.load(self.path)

    def runner(self):
        spec = self.checkpoint.spec
        io = RunnerIO(
            image_shape=spec.image_shape,
            num_classes=spec.num_classes,
            lambdas=spec.lambdas,
            pinned_lambda=self.pinned_lambda,
        )
        return OrtRunner(self.path, io, threads=1)


@pytest.fixture(scope="module")
def knob(checkpoint, tmp_path_factory):
    return Exported(checkpoint, tmp_path_factory.mktemp("knob"), 0.5)


@pytest.fixture(scope="module")
def pinned(checkpoint, tmp_path_factory):
    return Exported(checkpoint, tmp_path_factory.mktemp("pinned"), 0.5, pinned_lambda=0.3)


@pytest.fixture(scope="module", params=["knob", "pinned"])
def exported(request):
    return request.getfixturevalue(request.param)


def test_it_is_one_file_that_its_artifact_describes(exported):
    assert [path.name for path in exported.path.parent.iterdir()] == [exported.artifact.file]
    assert exported.artifact.sha256 == sha256_file(exported.path)
    assert all(t.data_location == TensorProto.DEFAULT for t in exported.model.graph.initializer)
    suffix = "" if exported.pinned_lambda is None else "-lambda0.3"
    assert exported.artifact.file == f"w0.50-fp32{suffix}.onnx"
    assert exported.artifact.pinned_lambda == exported.pinned_lambda
    assert (exported.artifact.width, exported.artifact.format) == (0.5, "onnx")


def test_it_is_valid_and_of_opset_18_alone(exported):
    onnx.checker.check_model(exported.model, full_check=True)
    opsets = [(entry.domain, entry.version) for entry in exported.model.opset_import]
    assert opsets == [("", 18)] and not exported.model.functions


def test_inputs_and_output_are_those_of_the_contract(exported):
    def describe(value):
        kind = value.type.tensor_type
        (batch, *rest) = kind.shape.dim
        assert batch.dim_param and not batch.dim_value
        assert all(dim.dim_value for dim in rest)
        return value.name, kind.elem_type, [dim.dim_value for dim in rest]

    expected = [("image", TensorProto.FLOAT, [1, 8, 8]), ("lambda", TensorProto.FLOAT, [])]
    if exported.pinned_lambda is not None:
        expected.pop()
    assert [describe(value) for value in exported.model.graph.input] == expected
    assert [describe(value) for value in exported.model.graph.output] == [
        ("logits", TensorProto.FLOAT, [10])
    ]


def test_metadata_names_what_the_file_is(exported):
    facts = {entry.key: entry.value for entry in exported.model.metadata_props}
    keys = ["checkpoint_sha256", "precision", "spec", "version", "width"]
    if exported.pinned_lambda is not None:
        keys.insert(1, "pinned_lambda")
        assert float(facts["oat_edge.pinned_lambda"]) == exported.pinned_lambda
    assert sorted(facts) == [f"oat_edge.{key}" for key in keys]
    spec = NetworkSpec.from_json(json.loads(facts["oat_edge.spec"]))
    assert spec == exported.checkpoint.spec
    assert float(facts["oat_edge.width"]) == 0.5
    assert facts["oat_edge.precision"] == "fp32"
    assert facts["oat_edge.checkpoint_sha256"] == "c" * 64
    assert facts["oat_edge.version"] == oat_edge.__version__


def test_nothing_of_this_machine_leaks(exported):
    content = exported.path.read_bytes()
    here = Path(oat_edge.__file__).resolve().parents[1]
    secrets = {str(exported.path.parent), str(here), str(Path.home()), str(Path.cwd())} - {"/"}
    for secret in (*secrets, "/work", "/home/", "site-packages", "dist-packages"):
        assert secret.encode() not in content
    bare = onnx.ModelProto()
    bare.CopyFrom(exported.model)
    for tensor in bare.graph.initializer:
        tensor.ClearField("raw_data")
    text = bare.SerializeToString()
    for secret in (".py", "Traceback", "pkg.torch", getpass.getuser()):
        assert secret.encode() not in text
    for part in (bare.graph, *bare.graph.node, *bare.graph.input, *bare.graph.value_info):
        assert not part.doc_string and not part.metadata_props


def test_the_same_checkpoint_gives_the_same_bytes(exported, tmp_path):
    again = Exported(exported.checkpoint, tmp_path, exported.width, exported.pinned_lambda)
    assert again.path.read_bytes() == exported.path.read_bytes()


def test_there_are_only_plain_operations(exported):
    kinds = {node.op_type for node in exported.model.graph.node}
    assert kinds <= ALLOWED and "Conv" in kinds
    assert not any(node.domain for node in exported.model.graph.node)
    if exported.pinned_lambda is not None:
        # Every affine went into its convolution; only residual additions are left.
        assert "Mul" not in kinds and "MatMul" not in kinds
        adds = sum(node.op_type == "Add" for node in exported.model.graph.node)
        assert adds == 3


def initializer_bytes(model):
    return sum(numpy_helper.to_array(t).nbytes for t in model.graph.initializer)


def test_no_second_batch_norm_and_no_film_is_left(exported):
    folded = exported.folded
    weights = sum(p.numel() for p in folded.backbone.parameters())
    weights += sum(b.numel() for b in folded.backbone.buffers())
    if exported.pinned_lambda is None:
        tables = folded.table.numel()
        assert tables == 2 * len(exported.checkpoint.spec.lambdas) * sum(folded.channels)
    else:
        tables = sum(folded.channels)  # as biases
    assert weights < initializer_bytes(exported.model) / 4 <= 1.02 * (weights + tables)
    widest = max(folded.channels)
    full = exported.checkpoint.network.state_dict()
    largest = max(t.numel() for t in full.values())
    for tensor in exported.model.graph.initializer:
        assert np.prod(tensor.dims, dtype=int) < largest / 3 and all(
            dim <= max(widest, 2 * sum(folded.channels)) for dim in tensor.dims
        )


@pytest.mark.parametrize("num", [1, 2, 7])
def test_it_computes_what_the_network_computes(exported, num):
    images = np.random.default_rng(num).random((num, 1, 8, 8), dtype=np.float32)
    lam = np.resize(np.array([0, 0.3, 1e-3, 0.65, 1], dtype=np.float32), num)
    if exported.pinned_lambda is not None:
        lam = np.full(num, exported.pinned_lambda, dtype=np.float32)
    with torch.no_grad(), exported.runner() as runner:
        network = exported.checkpoint.network
        expected = network(torch.from_numpy(images), torch.from_numpy(lam), 0.5).numpy()
        np.testing.assert_allclose(runner.infer(images, lam), expected, atol=1e-4)


def test_in_the_graph_lambda_is_clipped(knob):
    import onnxruntime

    session = onnxruntime.InferenceSession(knob.path, providers=["CPUExecutionProvider"])
    image = np.full((4, 1, 8, 8), 0.5, dtype=np.float32)
    lam = np.array([-3, 0, 1, 7], dtype=np.float32)
    below, zero, one, above = session.run(["logits"], {"image": image, "lambda": lam})[0]
    np.testing.assert_allclose(below, zero, atol=1e-6)
    np.testing.assert_allclose(above, one, atol=1e-6)
    assert np.abs(zero - one).max() > 1e-2


class Airy(torch.nn.Module):
    """Of all that torch computes, what ONNX surely lacks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.airy_ai(x).mean((1, 2))


def test_a_failure_names_its_cause_in_one_plain_line(checkpoint, tmp_path):
    folded = fold(checkpoint.network, 0.5)
    folded.backbone = Airy()
    with pytest.raises(
        BuildError, match=r"^ONNX export of .*: No ONNX function .*airy_ai"
    ) as failed:
        export(folded, checkpoint.spec, width=0.5, folder=tmp_path, checkpoint_sha256="0" * 64)
    assert not set("\x1b\n") & set(str(failed.value)) and not list(tmp_path.iterdir())


def test_numbers_in_names_are_short_and_never_collide():
    assert [in_name(width) for width in (0.5, 0.75, 1.0)] == ["0.50", "0.75", "1.00"]
    assert [in_name(lam, "g") for lam in (0.0, 0.3, 1.0)] == ["0", "0.3", "1"]
    close = (0.33, 0.333, 1 / 3, 0.334, 0.3300001)
    assert len({in_name(width) for width in close}) == len(close)
    assert all(float(in_name(width)) == width for width in close)
