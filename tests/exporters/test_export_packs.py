from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch

from oat_edge.data import load
from oat_edge.errors import DependencyError, InputError
from oat_edge.evaluation.config import EvalConfig
from oat_edge.evaluation.engine import evaluate_bundle
from oat_edge.evaluation.pack import AttackPack
from oat_edge.exporters import export as export_module
from oat_edge.exporters.config import ExportConfig
from oat_edge.exporters.export import export_bundle
from oat_edge.nn.fold import fold
from oat_edge.train.checkpoint import load_checkpoint
from tests.exporters.test_export import export, names


@pytest.fixture(scope="module")
def one_graph():
    """Exports the graph of the first call only: these tests look at packs."""
    own, made = export_module._One.onnx, {}

    def export_once(one, folded, say):
        if not made:
            artifact = own(one, folded, say)
            made.update(artifact=artifact, content=(one.staging / artifact.file).read_bytes())
        (one.staging / made["artifact"].file).write_bytes(made["content"])
        return made["artifact"]

    return export_once


@pytest.fixture
def with_pack(trained_run, one_graph, monkeypatch, tmp_path):
    """Export packs of a trained run, all into one bundle."""
    monkeypatch.setattr(export_module._One, "onnx", one_graph)
    data = load("digits", train_samples=600)
    trained = load_checkpoint(trained_run)

    def make(**changes):
        config = ExportConfig(**{"widths": (1.0,), "floor": False, "attack_samples": 10, **changes})
        steps = []
        bundle = export_bundle(
            trained, config, tmp_path / "b", dataset=data,
            say=lambda text, share=0.0: steps.append(text),
        )  # fmt: skip
        return bundle, steps, trained

    return make


def packs_of(bundle):
    return {a.attack: AttackPack.load(bundle.checked_path(a)) for a in bundle.of_format("attacks")}


def test_a_second_attack_adds_a_second_pack_and_is_not_made_again(with_pack, monkeypatch):
    with_pack()
    bundle, steps, trained = with_pack(attack="apgd")
    assert any("apgd on 10 images" in text for text in steps)
    packs = packs_of(bundle)
    assert set(packs) == {"pgd20", "apgd"}
    assert {"attacks-w1.00-pgd20.npz", "attacks-w1.00-apgd.npz"} < set(names(bundle.path))
    folded = fold(trained.network, 1.0)
    for row, lam in enumerate(trained.spec.lambdas):
        logits = folded.at(torch.tensor([lam]))
        right = {}
        for attack, pack in packs.items():
            distance = np.abs(pack.adversarial[row].astype(int) - pack.images.astype(int))
            assert distance.max() == 24 == round(255 * pack.eps)
            images = torch.from_numpy(pack.adversarial[row]).float() / 255
            right[attack] = logits(images).argmax(dim=1).numpy() == pack.labels
        assert not (right["apgd"] & ~right["pgd20"]).any()

    evaluation = evaluate_bundle(
        bundle, EvalConfig(num_queries=5), widths=(1.0,), lambdas=trained.spec.lambdas
    )
    for result in evaluation.report.rows:
        shares = result.robust_accuracy
        assert shares["worst"] <= shares["apgd"] <= shares["pgd20"] <= result.standard_accuracy

    monkeypatch.setattr("oat_edge.attacks.craft.craft_pack", None)
    for attack in ("pgd20", "apgd"):
        again, steps, _ = with_pack(attack=attack)
        assert "width 1: attack pack is there already" in steps
        assert set(packs_of(again)) == {"pgd20", "apgd"}


def test_another_seed_or_size_and_a_damaged_pack_are_made_anew(with_pack):
    first = packs_of(with_pack()[0])["pgd20"]
    for changes in ({"seed": 1}, {"seed": 1, "attack_samples": 11}):
        bundle, steps, _ = with_pack(**changes)
        pack = packs_of(bundle)["pgd20"]
        assert "width 1: attack pack is there already" not in steps
        assert not np.array_equal(pack.indices, first.indices)
    path = bundle.path / "attacks-w1.00-pgd20.npz"
    path.write_bytes(path.read_bytes()[:-1])
    bundle, steps, _ = with_pack(**changes)
    assert "width 1: attack pack is there already" not in steps
    assert np.array_equal(packs_of(bundle)["pgd20"].adversarial, pack.adversarial)


def test_what_an_attack_cannot_do_is_said_before_any_work(make_checkpoint, tmp_path, monkeypatch):
    few = make_checkpoint()
    few = dataclasses.replace(few, spec=dataclasses.replace(few.spec, class_names=("a", "b", "c")))
    data = load("digits", train_samples=120)
    with pytest.raises(InputError, match="need 4 classes or more, this network has 3"):
        export(few, tmp_path / "b", data, attack_samples=4, attack="apgd")
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(DependencyError, match=r"pip install 'oat-edge\[attack\]'$"):
        export(make_checkpoint(), tmp_path / "b", data, attack_samples=4, attack="autoattack")
    assert not (tmp_path / "b").exists()
