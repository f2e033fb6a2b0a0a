"""An evaluation of a run that was stopped goes on, and uses no cell that is not its own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from oat_edge.bench.environment import library_versions
from oat_edge.evaluation.cells import CELLS_FORMAT
from tests.evaluation.networks import cells, evaluate, figures
from tests.toy import EPS, toy_dataset


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
