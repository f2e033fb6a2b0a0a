"""A real int8 file: the pack that is made on it, and the verdict of `eval` on both precisions."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from oat_edge.attacks.stages import still_right
from oat_edge.bundle import Artifact, Bundle, add_artifacts
from oat_edge.data import load
from oat_edge.errors import InputError
from oat_edge.evaluation.accuracy import to_float
from oat_edge.evaluation.config import EvalConfig
from oat_edge.evaluation.engine import evaluate_bundle
from oat_edge.evaluation.outcome import classified_right
from oat_edge.evaluation.pack import AttackPack, levels
from oat_edge.evaluation.report import REPORT, EvalReport
from oat_edge.exporters.config import ExportConfig
from oat_edge.exporters.export import export_bundle
from oat_edge.exporters.int8 import activations, insert_qdq, prepare
from oat_edge.exporters.packs import export_graph_pack, has_graph_pack, has_pack
from oat_edge.files import sha256_file
from oat_edge.nn.graph_network import GraphNetwork
from oat_edge.runtime import open_artifact
from oat_edge.train.checkpoint import load_checkpoint

NUM = 60
CONFIG = ExportConfig(widths=(1.0,), attack_samples=NUM)


def quantise(source, target, images, lambdas, *, shrink=1.0):
    """By the smallest and largest values over these images at every λ."""
    prepared = prepare(onnx.load(source), target="cpu")
    looked_at = onnx.ModelProto()
    looked_at.CopyFrom(prepared)
    names = activations(prepared, target="cpu")
    for name in names:
        if name not in ("image", "logits"):
            value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            looked_at.graph.output.append(value)
    session = onnxruntime.InferenceSession(
        looked_at.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    seen = {name: [] for name in names}
    for lam in lambdas:
        feed = {"image": images, "lambda": np.full(len(images), lam, np.float32)}
        outputs = [value.name for value in session.get_outputs()]
        for name, value in (
            feed | dict(zip(outputs, session.run(None, feed), strict=True))
        ).items():
            if name in seen:
                seen[name].append(value)
    ranges = {
        name: (shrink * float(np.min(values)), shrink * float(np.max(values)))
        for name, values in seen.items()
    }
    onnx.save(insert_qdq(prepared, ranges, target="cpu"), target)


@dataclasses.dataclass
class Case:
    bundle: Bundle
    checkpoint: object
    dataset: object
    said: list[str]

    @property
    def graph(self):
        return self.bundle.path / "w1.00-int8.onnx"


@pytest.fixture(scope="module")
def case(trained_run, tmp_path_factory):
    """The trained run in fp32 and int8, with a pack made on each."""
    checkpoint, dataset = load_checkpoint(trained_run), load("digits", train_samples=600)
    out = tmp_path_factory.mktemp("bundles") / "int8"
    bundle = export_bundle(
        checkpoint, dataclasses.replace(CONFIG, floor=False), out, dataset=dataset
    )
    path, said = out / "w1.00-int8.onnx", []
    images = to_float(dataset.train.images[:64])
    quantise(out / "w1.00-fp32.onnx", path, images, checkpoint.spec.lambdas)
    artifact = Artifact(
        file=path.name, sha256=sha256_file(path), format="onnx", width=1.0,
        precision_requested="int8", precision_observed="int8", target="cpu",
    )  # fmt: skip
    pack = export_graph_pack(
        checkpoint, CONFIG, path, 1.0, out, dataset, lambda text, share=0.0: said.append(text)
    )
    bundle = add_artifacts(
        out, [artifact, pack], run=bundle.run,
        checkpoint_sha256=bundle.checkpoint_sha256, spec=bundle.spec,
    )  # fmt: skip
    return Case(bundle, checkpoint, dataset, said)


def pack_of(case, attack):
    return AttackPack.load(case.bundle.path / f"attacks-w1.00-{attack}.npz")


def test_the_pack_on_int8_has_the_images_of_the_pack_on_fp32_and_other_attacks(case):
    fp32, int8 = (pack_of(case, attack) for attack in ("pgd20", "pgd20-int8"))
    assert case.said[0] == "width 1: attack pack, pgd20-int8 on 60 images at 2 λ"
    for name in ("indices", "labels", "images"):
        assert np.array_equal(getattr(fp32, name), getattr(int8, name))
    assert (int8.attack, int8.eps, int8.lambdas) == ("pgd20-int8", fp32.eps, fp32.lambdas)
    assert not np.array_equal(fp32.adversarial, int8.adversarial)
    distance = np.abs(int8.adversarial.astype(int) - int8.images)
    assert 0 < distance.max() <= levels(int8.eps)
    crafted_on = int8.settings.pop("crafted_on")
    assert crafted_on["file"] == "w1.00-int8.onnx"
    assert crafted_on["sha256"] == sha256_file(case.graph)
    assert int8.settings == fp32.settings


def test_the_attack_finds_the_file_where_onnx_runtime_runs_it(case):
    """White-box on the very file: what fools the torch graph fools the runner, but for a few."""
    pack, network = pack_of(case, "pgd20-int8"), GraphNetwork.load(case.graph)
    artifact = case.bundle.select(format="onnx", precision="int8")
    with open_artifact(case.bundle, artifact) as runner:
        for row, lam in enumerate(pack.lambdas):
            run = classified_right(
                lambda image, lam=lam: runner.infer(image, lam), pack.adversarial[row],
                pack.labels, 30,
            )  # fmt: skip
            x = torch.from_numpy(pack.adversarial[row]).float() / 255
            own = still_right(network.at(torch.tensor([lam])), x, torch.from_numpy(pack.labels))
            assert (own.numpy() == run).mean() >= 0.95
            clean = classified_right(
                lambda image, lam=lam: runner.infer(image, lam), pack.images, pack.labels, 30
            )
            assert run.mean() < clean.mean() - 0.2


def test_a_pack_is_kept_for_the_same_file_and_made_again_for_another(case, tmp_path):
    facts = case.checkpoint, CONFIG
    assert has_graph_pack(case.bundle, *facts, case.graph, 1.0, case.dataset)
    assert has_pack(case.bundle, *facts, 1.0, case.dataset)
    other = tmp_path / case.graph.name
    images = to_float(case.dataset.train.images[:64])
    source = case.bundle.path / "w1.00-fp32.onnx"
    quantise(source, other, images, case.checkpoint.spec.lambdas, shrink=0.9)
    assert not has_graph_pack(case.bundle, *facts, other, 1.0, case.dataset)
    assert not has_graph_pack(None, *facts, case.graph, 1.0, case.dataset)
    for changes in ({"seed": 1}, {"attack_samples": NUM - 1}):
        config = dataclasses.replace(CONFIG, **changes)
        assert not has_graph_pack(
            case.bundle, case.checkpoint, config, case.graph, 1.0, case.dataset
        )
    # Whatever attack the packs on fp32 are made with, this one is PGD-20.
    config = dataclasses.replace(CONFIG, attack="apgd")
    assert has_graph_pack(case.bundle, case.checkpoint, config, case.graph, 1.0, case.dataset)


def test_a_file_with_a_pinned_lambda_gets_no_pack(case, tmp_path):
    model = onnx.load(case.graph)
    (lam,) = (value for value in model.graph.input if value.name == "lambda")
    model.graph.input.remove(lam)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([1.0]), "lambda"))
    onnx.save(model, tmp_path / "pinned.onnx")
    arguments = case.checkpoint, CONFIG, tmp_path / "pinned.onnx", 1.0, tmp_path, case.dataset
    with pytest.raises(InputError, match=r"pinned\.onnx has its λ pinned: a pack needs"):
        export_graph_pack(*arguments, lambda text, share=0.0: None)


def test_eval_sets_both_precisions_side_by_side(case):
    config = EvalConfig(num_queries=30)
    lambdas = case.checkpoint.spec.lambdas
    evaluation = evaluate_bundle(case.bundle, config, widths=(1.0,), lambdas=lambdas)
    report = evaluation.report
    assert [(row.precision, row.lam) for row in report.rows] == [
        (precision, lam) for precision in ("fp32", "int8") for lam in lambdas
    ]
    for row in report.rows:
        assert {"pgd20", "pgd20-int8", "square", "worst"} < set(row.robust_accuracy)
    assert report.warnings == (
        "apgd: left out, the bundle has no pack of it (oat-edge export --attack apgd)",
        "autoattack: left out, the bundle has no pack of it (oat-edge export --attack autoattack)",
    )
    rows = {(row.precision, row.lam): row for row in report.rows}
    assert [drop.lam for drop in report.precisions] == list(lambdas)
    for drop in report.precisions:
        before, after = rows["fp32", drop.lam], rows["int8", drop.lam]
        assert (drop.fp32_artifact, drop.artifact) == (before.artifact, after.artifact)
        assert drop.worst.fp32 == before.robust_accuracy["worst"]
        assert drop.worst.other == after.robust_accuracy["worst"]
        assert drop.standard_accuracy.other == after.standard_accuracy
        # Eight honest bits neither cost much nor hide anything.
        assert abs(drop.standard_accuracy.lost) <= 0.05
        assert drop.masking.flagged is False
    on = report.settings["attacks"]["pgd20-int8"]["crafted_on"]["1"]
    assert on["sha256"] == rows["int8", lambdas[0]].sha256
    saved = evaluation.save(case.bundle.path)
    assert EvalReport.load(case.bundle.path / REPORT) == saved
