"""`oat-edge eval RUN` without its command line: what is evaluated, and what the report says."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import sys

import numpy as np
import pytest
import torch
from rich.console import Console

from oat_edge.attacks.point import PointAttack
from oat_edge.attacks.stages import still_right
from oat_edge.cli.eval_summary import print_evaluation
from oat_edge.errors import DependencyError, InputError
from oat_edge.evaluation.checks import TOO_WEAK
from oat_edge.evaluation.config import ATTACKS, EvalConfig
from oat_edge.evaluation.network import evaluate_network
from oat_edge.evaluation.pack import chosen_indices
from oat_edge.evaluation.report import REPORT, SAMPLES, EvalReport, row_name
from tests.evaluation.networks import FAST, evaluate
from tests.toy import EPS, LAMBDAS, WIDTHS, Toy, toy_checkpoint, toy_dataset


def test_every_point_of_the_grid_has_a_row_with_all_attacks(whole):
    report = whole.report
    assert [(row.width, row.lam) for row in report.rows] == [*itertools.product(WIDTHS, LAMBDAS)]
    for row in report.rows:
        assert list(row.robust_accuracy) == [*FAST, "transfer", "worst"]
        worst = row.robust_accuracy["worst"]
        assert all(
            worst <= share <= row.standard_accuracy for share in row.robust_accuracy.values()
        )
        assert row.num_samples == 12 and row.backend == "torch-cpu" and row.status == "ok"
        assert 0 < worst < row.standard_accuracy
    assert len({row.robust_accuracy["pgd20"] for row in report.rows}) > 1
    assert report.settings["eps"] == EPS and list(report.settings["attacks"]) == [*FAST]
    assert report.settings["mode"].startswith("fast mode (pgd20; square)")
    assert report.settings["cells"] == {"done_before": 0, "new": 4 * 3}


def test_the_images_are_those_that_export_would_choose(whole):
    assert np.array_equal(whole.indices, chosen_indices(40, 12, 0))
    assert np.array_equal(whole.labels, toy_dataset().test.labels[whole.indices])


def test_standard_accuracy_is_that_of_the_folded_network(whole):
    split = toy_dataset().test.take(whole.indices)
    x, y = torch.from_numpy(split.images).float() / 255, torch.from_numpy(split.labels)
    for row in whole.report.rows:
        right = still_right(Toy(row.width).at(torch.tensor([row.lam])), x, y).numpy()
        outcome = whole.outcomes[row_name(row.artifact, row.point)]
        assert np.array_equal(outcome.clean, right) and row.standard_accuracy == right.mean()


def test_the_transfer_grid_is_of_the_strongest_attack_and_goes_into_the_worst_case(whole):
    (grid,) = whole.report.transfer
    points = tuple(row.point for row in whole.report.rows)
    assert grid.attack == "pgd20" and grid.sources == grid.targets == points
    for i, row in enumerate(whole.report.rows):
        shares = [share for j, share in enumerate(grid.robust_accuracy[i]) if j != i]
        assert row.robust_accuracy["transfer"] <= min(shares)
        assert row.robust_accuracy["worst"] <= row.robust_accuracy["transfer"]
    # Otherwise it might be the diagonal all over.
    assert len({share for shares in grid.robust_accuracy for share in shares}) > 2


@pytest.mark.parametrize(
    "attacks",
    [("pgd20",), ("apgd", "square"), pytest.param(ATTACKS, marks=pytest.mark.slow)],
)
def test_the_grid_is_what_replaying_the_crafted_images_gives_the_diagonal_too(
    attacks, passes, tmp_path, monkeypatch
):
    crafted, own = {}, PointAttack.run

    def run(self):
        result = own(self)
        crafted[self.point] = result.crafted.clone()
        return result

    monkeypatch.setattr(PointAttack, "run", run)
    evaluation = evaluate(tmp_path, attacks=attacks)
    (grid,) = evaluation.report.transfer
    assert grid.attack == {
        ("pgd20",): "pgd20", ("apgd", "square"): "pgd20 and apgd", ATTACKS: "pgd20 and autoattack",
    }[attacks]  # fmt: skip
    y = torch.from_numpy(evaluation.labels)
    for i, target in enumerate(grid.targets):
        clean = evaluation.outcomes[row_name("checkpoint.safetensors", target)].clean
        logits = Toy(target.width).at(torch.tensor([target.lam]))
        for j, source in enumerate(grid.sources):
            right = clean & still_right(logits, crafted[source], y).numpy()
            assert grid.robust_accuracy[i][j] == right.mean(), (target, source)
        shares = evaluation.report.rows[i].robust_accuracy
        white_box = [shares[name] for name in shares if name in ATTACKS and name != "square"]
        assert shares["worst"] <= grid.robust_accuracy[i][i] <= min(white_box)


def test_without_transfer_or_with_one_point_there_is_none(passes, tmp_path):
    for options in ({"transfer": False}, {"widths": (1.0,), "lambdas": (0.5,)}):
        report = evaluate(tmp_path, **options).report
        assert report.transfer == ()
        assert all("transfer" not in row.robust_accuracy for row in report.rows)


def test_progress_grows_from_nothing_to_the_total(passes, tmp_path):
    told = []
    evaluate(tmp_path, progress=lambda *call: told.append(call))
    done, totals, labels = zip(*told, strict=True)
    assert done[0] == 0 and list(done) == sorted(done)
    assert done[-1] == pytest.approx(totals[0]) and len(set(totals)) == 1
    assert max(done) <= totals[0]
    names = [*dict.fromkeys(labels)]
    assert names[0] == "0.5@0 pgd20" and names[-1] == "transfer" and len(names) == 4 * 3 + 1


def test_autoattack_is_never_above_apgd_and_is_called_so(passes, tmp_path):
    report = evaluate(tmp_path, attacks=ATTACKS, widths=(1.0,), num_samples=8).report
    for row in report.rows:
        shares = row.robust_accuracy
        assert shares["worst"] <= shares["autoattack"] <= shares["apgd"]
        assert set(row.seconds) >= {"fab-t", "square-aa"}
    assert report.settings["mode"] == "AutoAttack standard"
    assert report.transfer[0].attack == "pgd20 and autoattack"
    # Of a network, all is all there is.
    again = evaluate(tmp_path, attacks=None, widths=(1.0,), num_samples=8).report
    assert again.rows == report.rows and again.settings["cells"]["new"] == 0
    assert list(again.settings["attacks"]) == [*ATTACKS]
    assert report.settings["attacks"]["autoattack"]["implementation"].startswith("pyautoattack")


def test_the_saved_report_and_samples_agree(whole, tmp_path):
    saved = whole.save(tmp_path / "whole")
    assert EvalReport.load(tmp_path / "whole" / REPORT) == saved
    with np.load(tmp_path / "whole" / SAMPLES) as file:
        for row in saved.rows:
            name = row_name(row.artifact, row.point)
            assert file[f"{name}|clean"].mean() == row.standard_accuracy
            for attack, share in row.robust_accuracy.items():
                assert file[f"{name}|{attack}"].mean() == share
    text = (tmp_path / "whole" / REPORT).read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_more_samples_than_there_are_means_all(passes, tmp_path):
    report = evaluate(tmp_path, num_samples=1000, widths=(1.0,), attacks=("pgd20",)).report
    assert report.settings["num_samples"] == 40 == report.rows[0].num_samples
    assert report.warnings == ("samples: 1000 asked for, the test split has 40",)
    for num in (40, 39, None):
        exact = evaluate(tmp_path, num_samples=num, widths=(1.0,), attacks=("pgd20",)).report
        assert exact.warnings == ()


@pytest.mark.parametrize(("attacks", "told"), [(("pgd20",), False), (FAST, True)])
def test_a_radius_between_levels_is_told_where_square_runs(attacks, told, passes, tmp_path):
    report = evaluate(tmp_path, attacks=attacks, eps=8.5 / 255, widths=(1.0,)).report
    assert (len(report.warnings) == 1) is told
    assert all("ε is 8.5/255, Square attacks within 8/255" in text for text in report.warnings)


@pytest.mark.parametrize(
    ("attacks", "flagged", "status"),
    [(FAST, None, "ok"), (("pgd20", "apgd", "square"), True, "suspect")],
)
def test_an_honest_network_on_which_pgd_is_too_weak_is_warned_about_not_suspected(
    attacks, flagged, status, passes, tmp_path, monkeypatch
):
    def strong(infer, images, labels, clean, **options):
        return clean & (np.arange(len(clean)) % 10 == 0)

    monkeypatch.setattr("oat_edge.attacks.point.right_under_square", strong)
    evaluation = evaluate(
        tmp_path, attacks=attacks, num_samples=80, dataset=toy_dataset(80), lambdas=(0.0,)
    )
    file = io.StringIO()
    print_evaluation(evaluation.report, Console(file=file, width=1000, highlight=False))
    for row in evaluation.report.rows:
        (square,) = [check for check in row.checks if check.name == "square"]
        assert row.robust_accuracy["square"] < row.robust_accuracy["pgd20"] - 0.1
        assert square.flagged is flagged and row.status == status
        others = [check.flagged for check in row.checks if check is not square]
        assert others == [False] * len(others)
        assert (f"warning: {row.point}: {square.evidence}" in file.getvalue()) == (not flagged)
    assert (TOO_WEAK in file.getvalue()) == (not flagged)
    assert ("do not trust the RA of suspect rows" in file.getvalue()) == (flagged is True)


@pytest.mark.parametrize("attack", ["apgd", "autoattack"])
def test_what_cannot_be_done_is_said_before_any_work(attack, passes, tmp_path, monkeypatch):
    three = dataclasses.replace(toy_checkpoint(num_classes=3))
    options = {"dataset": toy_dataset(), "widths": WIDTHS, "lambdas": LAMBDAS, "folder": tmp_path}
    config = EvalConfig(attacks=("pgd20", attack))
    with pytest.raises(InputError, match=r"need 4 classes or more, this network has 3"):
        evaluate_network(three, config, **options)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(DependencyError, match=r"pip install 'oat-edge\[attack\]'$"):
        evaluate_network(toy_checkpoint(), config, **options)
    with pytest.raises(InputError, match="under one 8-bit level"):
        evaluate_network(
            toy_checkpoint(), EvalConfig(attacks=("pgd20", "square"), eps=0.003), **options
        )
    assert passes == [] and list(tmp_path.iterdir()) == []


def test_three_classes_without_autoattacks_package_are_enough_for_pgd_and_square(
    passes, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    report = evaluate(tmp_path, attacks=("pgd20", "square")).report
    assert list(report.settings["attacks"]) == ["pgd20", "square"]


def test_the_networks_mode_gradients_and_random_state_are_left_alone(passes, tmp_path):
    state = torch.get_rng_state()
    evaluate(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
