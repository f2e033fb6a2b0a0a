"""A real bundle of tiny ONNX networks: logits = image @ W_width + lambda * v."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from oat_edge.bench import cells
from oat_edge.bench.config import BenchConfig
from oat_edge.bench.run import bench_bundle
from oat_edge.bundle import Artifact, Bundle, add_artifacts
from oat_edge.evaluation.pack import AttackPack
from oat_edge.files import sha256_file
from oat_edge.network_spec import NetworkSpec
from tests.gpus import need_cuda_provider

CHECKPOINT = "c" * 64
KNOTS = (0.0, 0.3, 1.0)
SPEC = NetworkSpec(
    arch="tiny",
    widths=(0.5, 1.0),
    lambdas=KNOTS,
    class_names=("a", "b", "c"),
    image_shape=(1, 4, 4),
    eps=8 / 255,
)
SHORT = BenchConfig(
    batches=(1, 4),
    min_seconds=0.03,
    min_iterations=30,
    rounds=3,
    warmup_min_s=0.003,
    warmup_cap_s=0.01,
    rewarm_s=0.0,
    threads=1,
    throughput_seconds=0.01,
    throughput_workers=2,
)

QUICKEST = BenchConfig(
    batches=(1,),
    min_seconds=0.0,
    min_iterations=6,
    rounds=3,
    warmup_min_s=0.0,
    warmup_cap_s=0.0,
    rewarm_s=0.0,
    threads=1,
    throughput_seconds=0.0,
    throughput_workers=1,
)


def write_network(path: Path, seed: int, pinned_lambda: float | None = None) -> None:
    """A valid ONNX file with the inputs and output of DESIGN, section 5."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(16, 3)).astype(np.float32)
    shift = rng.normal(size=(1, 3)).astype(np.float32)
    constants = [numpy_helper.from_array(weight, "W"), numpy_helper.from_array(shift, "v")]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 4, 4])]
    if pinned_lambda is None:
        inputs.append(helper.make_tensor_value_info("lambda", TensorProto.FLOAT, ["N"]))
        constants.append(numpy_helper.from_array(np.array([-1, 1], dtype=np.int64), "column"))
        lam_nodes = [helper.make_node("Reshape", ["lambda", "column"], ["lam"])]
    else:
        constants.append(numpy_helper.from_array(np.array([[pinned_lambda]], np.float32), "lam"))
        lam_nodes = []
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "W"], ["scores"]),
            *lam_nodes,
            helper.make_node("Mul", ["lam", "v"], ["shifted"]),
            helper.make_node("Add", ["scores", "shifted"], ["logits"]),
        ],
        "tiny",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def make_pack(width: float, attack: str = "pgd20", *, num: int = 12, seed: int = 0) -> AttackPack:
    """Images anywhere on the grid and perturbations anywhere in the ball."""
    rng = np.random.default_rng(seed)
    images = rng.integers(8, 248, (num, 1, 4, 4)).astype(np.uint8)
    noise = np.random.default_rng([seed, *attack.encode()]).integers(-8, 9, (3, num, 1, 4, 4))
    return AttackPack(
        attack=attack,
        width=width,
        lambdas=KNOTS,
        eps=8 / 255,
        checkpoint_sha256=CHECKPOINT,
        settings={"steps": 20},
        indices=np.arange(num),
        labels=rng.integers(0, 3, num),
        images=images,
        adversarial=(images + noise).astype(np.uint8),
    )


def make_bundle(folder: Path, *, packs: bool = True) -> Bundle:
    """Width 0.5: λ-input, pinned at 0.3, two packs. Width 1: λ-input and one pack."""
    folder.mkdir(parents=True)
    artifacts = []

    def add(name: str, format: str, width: float, **facts: object) -> None:
        digest = sha256_file(folder / name)
        artifacts.append(
            Artifact(file=name, sha256=digest, format=format, width=width, **facts)  # type: ignore[arg-type]
        )

    for width, name, pinned in (
        (0.5, "w0.50-fp32.onnx", None),
        (0.5, "w0.50-lam0.3-fp32.onnx", 0.3),
        (1.0, "w1.00-fp32.onnx", None),
    ):
        write_network(folder / name, seed=int(100 * width), pinned_lambda=pinned)
        add(name, "onnx", width, pinned_lambda=pinned)
    for width, attack in ((0.5, "pgd20"), (0.5, "apgd"), (1.0, "pgd20")) if packs else ():
        name = f"attacks-w{width:.2f}-{attack}.npz"
        make_pack(width, attack).save(folder / name)
        add(name, "attacks", width, attack=attack)
    add_artifacts(folder, artifacts, run="tiny-run", checkpoint_sha256=CHECKPOINT, spec=SPEC)
    return Bundle.open(folder)


@dataclass
class Benched:
    bundle: Bundle
    config: BenchConfig
    report: object
    samples: object
    progress: list[tuple[float, float, str]]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny-run")


@pytest.fixture
def bare_bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bare", packs=False)


@pytest.fixture
def both_kinds(tmp_path: Path) -> Bundle:
    """The same, with a λ-input file of width 0.5 whose product is in half precision."""
    bundle = make_bundle(tmp_path / "both")
    model = onnx.load(bundle.path / "w0.50-fp32.onnx")
    halved = []
    for node in model.graph.node:
        if node.op_type != "MatMul":
            halved.append(node)
            continue
        halved += [
            helper.make_node("Cast", ["flat"], ["flat_half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["W"], ["W_half"], to=TensorProto.FLOAT16),
            helper.make_node("MatMul", ["flat_half", "W_half"], ["scores_half"]),
            helper.make_node("Cast", ["scores_half"], ["scores"], to=TensorProto.FLOAT),
        ]
    del model.graph.node[:]
    model.graph.node.extend(halved)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, bundle.path / "w0.50-fp16.onnx")
    artifact = Artifact(
        file="w0.50-fp16.onnx",
        sha256=sha256_file(bundle.path / "w0.50-fp16.onnx"),
        format="onnx",
        width=0.5,
        precision_requested="fp16",
        precision_observed="fp16",
    )
    add_artifacts(bundle.path, [artifact], run=bundle.run, checkpoint_sha256=CHECKPOINT, spec=SPEC)
    return Bundle.open(bundle.path)


@pytest.fixture
def needs_gpu() -> None:
    """Skips, with the reason, where there is none that ONNX Runtime could use."""
    need_cuda_provider()


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the processes of cells fail as tests/bench/faulty.py says."""
    monkeypatch.setattr(cells, "PROCESS", "tests.bench.faulty")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))

    def make(**facts: object) -> None:
        monkeypatch.setenv("OAT_EDGE_FAULT", json.dumps(facts))

    return make


@pytest.fixture(scope="session")
def squared(bundle: Bundle) -> Benched:
    """The same with Square attack too, in no time."""
    return run_bench(bundle, replace(QUICKEST, attacks=("pack", "square"), queries=30, seed=3))


@pytest.fixture(scope="session")
def benched(bundle: Bundle) -> Benched:
    """One real bench of the whole bundle, with a λ (0.5) that no pack holds."""
    return run_bench(bundle, SHORT)


def run_bench(bundle: Bundle, config: BenchConfig) -> Benched:
    progress: list[tuple[float, float, str]] = []
    report, samples = bench_bundle(
        bundle,
        config,
        widths=(0.5, 1.0),
        lambdas=(0.0, 0.5, 1.0),
        progress=lambda *call: progress.append(call),
    )
    return Benched(bundle, config, report, samples, progress)
