"""`oat-edge eval RUN` without its command line: resume, reuse, and what the report says."""

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
from oat_edge.bench.environment import library_versions
from oat_edge.cli.eval_summary import print_evaluation
from oat_edge.errors import DependencyError, InputError
from oat_edge.evaluation.cells import CELLS_FORMAT
from oat_edge.evaluation.checks import TOO_WEAK
from oat_edge.evaluation.config import ATTACKS, EvalConfig
from oat_edge.evaluation.network import CELLS, evaluate_network
from oat_edge.evaluation.pack import chosen_indices
from oat_edge.evaluation.report import REPORT, SAMPLES, EvalReport, row_name
from tests.toy import EPS, LAMBDAS, WIDTHS, Toy, toy_checkpoint, toy_dataset

FAST = ("pgd20", "square")  # three parts: these and the checks


@pytest.fixture
def passes(monkeypatch):
    """Every pass through the network, as its number of images; `fold` gives the toy."""
    made: list[int] = []
    import oat_edge.nn.fold

    monkeypatch.setattr(
        oat_edge.nn.fold, "fold", lambda network, width: Toy(width, passes=made)
    )  # fmt: skip
    return made


def evaluate(folder, *, sha256="a" * 64, widths=WIDTHS, lambdas=LAMBDAS, progress=None, **changes):
    fresh, dataset = changes.pop("fresh", False), changes.pop("dataset", None)
    settings = {"attacks": FAST, "num_samples": 12, "num_queries": 30, **changes}
    return evaluate_network(
        toy_checkpoint(sha256),
        EvalConfig(**settings),
        dataset=dataset or toy_dataset(),
        widths=widths,
        lambdas=lambdas,
        folder=folder,
        fresh=fresh,
        progress=progress or (lambda done, total, label: None),
    )


def figures(evaluation):
    """Everything of a report but what time it took."""
    value = evaluation.report.to_json()
    del value["environment"]  # has the clock
    value["settings"].pop("cells")
    for row in value["rows"]:
        assert all(seconds >= 0 for seconds in row["seconds"].values())
        row["seconds"] = sorted(row["seconds"])
    return value


def cells(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / CELLS).glob("*/*.npz")}


@pytest.fixture
def whole(passes, tmp_path):
    return evaluate(tmp_path / "whole")


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


@pytest.mark.parametrize("attacks", [("pgd20",), ("apgd", "square"), ATTACKS])
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


class Stop:
    """Ctrl-C after so many calls, or as the n-th part begins."""

    def __init__(self, calls=None, parts=None):
        self.calls, self.parts, self.seen = calls, parts, []

    def __call__(self, done, total, label):
        if not self.seen or self.seen[-1] != label:
            self.seen.append(label)
        if self.calls is not None:
            self.calls -= 1
        if self.calls == 0 or len(self.seen) == self.parts:
            raise KeyboardInterrupt


@pytest.mark.parametrize("parts", [1, 2, 5, 12, 13])
def test_stopped_after_any_number_of_parts_it_goes_on_and_ends_the_same(
    parts, whole, passes, tmp_path
):
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, progress=Stop(parts=parts))
    before = cells(folder)
    assert len(before) == parts - 1
    again = evaluate(folder)
    assert figures(again) == figures(whole)
    for name, outcome in whole.outcomes.items():
        for attack, right in outcome.robust.items():
            assert np.array_equal(again.outcomes[name].robust[attack], right)
    assert again.report.settings["cells"] == {"done_before": parts - 1, "new": 13 - parts}
    assert before.items() <= cells(folder).items(), "a finished part was done again"


@pytest.mark.parametrize("calls", [3, 77, 300, 600])
def test_stopped_inside_a_part_it_goes_on_with_that_part(calls, whole, passes, tmp_path):
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, progress=Stop(calls=calls))
    assert figures(evaluate(folder)) == figures(whole)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_chain_of_stages_goes_on_with_the_survivors_of_the_ones_before(parts, passes, tmp_path):
    chain = {"attacks": ("apgd",), "widths": (1.0,), "lambdas": (0.0,)}
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "stopped", progress=Stop(parts=parts), **chain)
    whole = evaluate(tmp_path / "whole", **chain)
    assert figures(evaluate(tmp_path / "stopped", **chain)) == figures(whole)


def test_stopped_again_and_again_it_still_ends(whole, passes, tmp_path):
    folder, starts = tmp_path / "stopped", 0
    while True:
        starts += 1
        try:
            again = evaluate(folder, progress=Stop(parts=4))
        except KeyboardInterrupt:
            continue
        break
    assert starts == 5 and figures(again) == figures(whole)


def test_a_finished_evaluation_only_looks_at_its_cells_and_replays(whole, passes, tmp_path):
    before, num = cells(tmp_path / "whole"), len(passes)
    again = evaluate(tmp_path / "whole")
    assert figures(again) == figures(whole) and cells(tmp_path / "whole") == before
    # Clean at each of four points, and the grid of transfer.
    assert len(passes) - num == 4 + 4 * 3
    seconds = [[row.seconds for row in one.report.rows] for one in (whole, again)]
    assert seconds[0] == seconds[1], "what an earlier run has spent is part of the time"


@pytest.mark.parametrize("cut", [0, 10, None])
def test_a_damaged_cell_is_done_again(cut, whole, passes, tmp_path):
    chosen = sorted(cells(tmp_path / "whole"))[::3]
    for path in chosen:
        content = path.read_bytes()
        path.write_bytes(content[:cut] if cut is not None else content[:-40] + b"\0" * 40)
    before = cells(tmp_path / "whole")
    again = evaluate(tmp_path / "whole")
    assert figures(again) == figures(whole)
    after = cells(tmp_path / "whole")
    assert {path for path in after if after[path] != before[path]} == set(chosen)
    assert again.report.settings["cells"]["new"] == len(chosen)


@pytest.mark.parametrize(
    "changes",
    [{"sha256": "b" * 64}, {"eps": EPS / 2}, {"seed": 1}, {"num_samples": 13}, {"batch_size": 5}],
)
def test_another_evaluation_uses_none_of_the_cells(changes, whole, passes, tmp_path):
    before = cells(tmp_path / "whole")
    other = evaluate(tmp_path / "whole", **changes)
    assert other.report.settings["cells"]["done_before"] == 0
    assert before.items() < cells(tmp_path / "whole").items()
    fresh = evaluate(tmp_path / "elsewhere", **changes)
    assert figures(other) == figures(fresh)


@pytest.mark.parametrize("what", ["images", "labels"])
def test_other_images_at_the_same_places_use_none_of_the_cells(what, whole, passes, tmp_path):
    split = toy_dataset().test
    changed = {"images": 255 - split.images, "labels": (split.labels + 1) % 5}[what]
    dataset = dataclasses.replace(toy_dataset(), test=dataclasses.replace(split, **{what: changed}))
    other = evaluate(tmp_path / "whole", dataset=dataset)
    assert np.array_equal(other.indices, whole.indices)
    assert other.report.settings["cells"]["done_before"] == 0
    assert figures(other) == figures(evaluate(tmp_path / "elsewhere", dataset=dataset))


@pytest.mark.parametrize("what", ["torch", "pyautoattack", "format"])
def test_cells_of_another_library_or_meaning_are_not_used(
    what, whole, passes, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        module = "oat_edge.evaluation.network"
        if what == "format":
            patched.setattr(f"{module}.CELLS_FORMAT", CELLS_FORMAT + 1)
        else:
            versions = {**library_versions(), what: "0.0.1"}
            patched.setattr(f"{module}.library_versions", lambda: versions)
        assert evaluate(tmp_path / "whole").report.settings["cells"]["done_before"] == 0
        assert evaluate(tmp_path / "whole").report.settings["cells"]["new"] == 0
    assert evaluate(tmp_path / "whole").report.settings["cells"]["new"] == 0


def test_more_queries_are_another_square_but_the_rest_is_there(whole, passes, tmp_path):
    other = evaluate(tmp_path / "whole", num_queries=31)
    assert other.report.settings["cells"] == {"done_before": 8, "new": 4}
    assert figures(other) == figures(evaluate(tmp_path / "elsewhere", num_queries=31))


def test_pgd_first_and_everything_later_reuses_pgd(whole, passes, tmp_path):
    folder = tmp_path / "grown"
    first = evaluate(folder, attacks=("pgd20",))
    assert first.report.settings["cells"]["new"] == 4 * 2
    before = cells(folder)
    grown = evaluate(folder)
    assert grown.report.settings["cells"] == {"done_before": 8, "new": 4}
    assert before.items() < cells(folder).items() and figures(grown) == figures(whole)


def test_more_points_reuse_those_that_are_there(passes, tmp_path):
    evaluate(tmp_path, widths=(0.5,), lambdas=(0.0,))
    grown = evaluate(tmp_path, lambdas=(0.0, 0.5, 1.0))
    assert grown.report.settings["cells"] == {"done_before": 3, "new": 15}


def test_fresh_does_everything_again(whole, passes, tmp_path):
    before = cells(tmp_path / "whole")
    again = evaluate(tmp_path / "whole", fresh=True)
    after = cells(tmp_path / "whole")
    assert again.report.settings["cells"] == {"done_before": 0, "new": 12}
    assert set(after) == set(before) and all(after[path] > before[path] for path in before)
    assert figures(again) == figures(whole)


def test_fresh_leaves_other_evaluations_alone(whole, passes, tmp_path):
    evaluate(tmp_path / "whole", seed=1, fresh=True)
    assert evaluate(tmp_path / "whole").report.settings["cells"]["new"] == 0


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
