"""Square on files is not run twice, and never taken for what it was not run on."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from oat_edge.bench.environment import collect
from oat_edge.evaluation.outcome import right_under_square
from oat_edge.runtime.ort import OrtRunner
from tests.bench.conftest import make_pack
from tests.evaluation.bundles import (
    evaluate,
    figures,
    packs_of,
    with_pack,
)


def test_square_is_the_same_again_and_is_not_run_again(bundle, monkeypatch):
    first = evaluate(bundle, attacks=("pgd20", "square"))
    cells = sorted((bundle.path / "eval").glob("*/*.npz"))
    assert len(cells) == 7
    monkeypatch.setattr("oat_edge.evaluation.engine.right_under_square", None)
    assert figures(evaluate(bundle, attacks=("pgd20", "square"))) == figures(first)
    monkeypatch.undo()
    cells[0].write_bytes(b"damaged")
    assert figures(evaluate(bundle, attacks=("pgd20", "square"))) == figures(first)
    times = {path: path.stat().st_mtime_ns for path in cells}
    evaluate(bundle, attacks=("pgd20", "square"), fresh=True)
    assert all(path.stat().st_mtime_ns > times[path] for path in cells)


@pytest.mark.parametrize(
    "changes", [{"num_queries": 41}, {"seed": 1}, {"num_samples": 11}, {"attacks": ("square",)}]
)
def test_cells_are_of_one_setting_and_one_choice_of_images(changes, bundle):
    evaluate(bundle, attacks=("pgd20", "square"))
    before = len([*(bundle.path / "eval").glob("*/*.npz")])
    other = {"attacks": ("pgd20", "square"), **changes}
    reused = evaluate(bundle, **other)
    after = len([*(bundle.path / "eval").glob("*/*.npz")])
    # The images of Square alone are the same twelve.
    assert after == (before if "attacks" in changes else 2 * before)
    shutil.rmtree(bundle.path / "eval")
    assert figures(evaluate(bundle, **other)) == figures(reused)


class Recorded:
    """Square as it is, and how often it ran."""

    def __init__(self, monkeypatch):
        self.runs, own = 0, right_under_square

        def counted(*arguments, **options):
            self.runs += 1
            return own(*arguments, **options)

        monkeypatch.setattr("oat_edge.evaluation.engine.right_under_square", counted)

    def since(self):
        runs, self.runs = self.runs, 0
        return runs


def other_engine(monkeypatch, **attributes):
    """The real engine under other names: what it says it is, not what it computes."""
    own = OrtRunner.__init__

    def init(self, *arguments, **options):
        own(self, *arguments, **options)
        for name, value in attributes.items():
            setattr(self, name, value)

    monkeypatch.setattr(OrtRunner, "__init__", init)


@pytest.mark.parametrize(
    "attributes",
    [
        {"backend": "tensorrt"},
        {"device": "cuda"},
        {"precision": "int8"},
        {"versions": {"onnxruntime": "0.0.1"}},
        {"versions": {}},
    ],
    ids=lambda attributes: "-".join(attributes),
)
def test_cells_of_one_engine_are_not_those_of_another(attributes, bundle, monkeypatch):
    square = Recorded(monkeypatch)
    options = {"attacks": ("square",), "num_queries": 5}
    evaluate(bundle, **options)
    assert square.since() == 7
    before = {path: path.read_bytes() for path in (bundle.path / "eval").glob("*/*.npz")}
    with monkeypatch.context() as patched:
        other_engine(patched, **attributes)
        evaluate(bundle, **options)
        assert square.since() == 7
        evaluate(bundle, **options)
        assert square.since() == 0
        evaluate(bundle, fresh=True, **options)
        assert square.since() == 7
    after = {path: path.read_bytes() for path in (bundle.path / "eval").glob("*/*.npz")}
    assert before.items() < after.items() and len(after) == 14
    evaluate(bundle, **options)
    assert square.since() == 0


def test_a_bundle_that_moves_to_another_machine_is_attacked_anew(bundle, monkeypatch):
    square = Recorded(monkeypatch)
    options = {"attacks": ("square",), "num_queries": 5}
    evaluate(bundle, **options)
    here = collect()
    cores = dataclasses.replace(here.device, cores=here.device.cores + 1)
    vectors = dataclasses.replace(here.device, vector_extensions=("sse4_2",))
    square.since()
    for device, runs in ((cores, 7), (vectors, 7), (here.device, 0)):
        environment = dataclasses.replace(here, device=device)
        monkeypatch.setattr("oat_edge.evaluation.engine.collect", lambda device, e=environment: e)
        evaluate(bundle, **options)
        assert square.since() == runs
    # The clock, the load and the commit are no part of it.
    changes = {"load_average": (9.0,) * 3, "timestamp_utc": "1970", "git_commit": "f" * 40}
    later = dataclasses.replace(here, **changes)
    monkeypatch.setattr("oat_edge.evaluation.engine.collect", lambda device: later)
    evaluate(bundle, **options)
    assert square.since() == 0


@pytest.mark.parametrize("what", ["images", "labels"])
def test_other_images_at_the_same_places_are_attacked_anew(what, bundle):
    """A pack that was made again of another data set: the indices tell nothing."""
    options = {"attacks": ("pgd20", "square"), "widths": (0.5,)}
    first = evaluate(bundle, **options)
    again = bundle
    for (attack, width), pack in packs_of(bundle).items():
        other = make_pack(width, attack, seed=1)
        if what == "labels":
            other = dataclasses.replace(pack, labels=(pack.labels + 1) % 3)
        assert np.array_equal(pack.indices, other.indices)
        again = with_pack(again, other)
    changed = evaluate(again, **options)
    assert len([*(bundle.path / "eval").glob("*/*.npz")]) == 2 * 4
    shutil.rmtree(bundle.path / "eval")
    assert figures(evaluate(again, **options)) == figures(changed) != figures(first)


def test_fresh_forgets_once_and_keeps_what_it_has_just_made(bundle, monkeypatch):
    """All files share a folder of cells: the last one must not forget the others'."""
    square = Recorded(monkeypatch)
    options = {"attacks": ("square",), "num_queries": 5}
    for fresh, runs in ((True, 7), (False, 0), (True, 7), (False, 0)):
        evaluate(bundle, fresh=fresh, **options)
        assert square.since() == runs


def test_stopped_anywhere_it_goes_on_and_ends_the_same(bundle, tmp_path):
    whole = evaluate(bundle, attacks=("pgd20", "square"))
    shutil.rmtree(bundle.path / "eval")
    for calls in (1, 30, 60, 90):
        left = calls

        def stop(done, total, label):
            nonlocal left
            left -= 1
            if left <= 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate(bundle, attacks=("pgd20", "square"), progress=stop)
    assert [*(bundle.path / "eval").glob("*/*.npz")]
    assert figures(evaluate(bundle, attacks=("pgd20", "square"))) == figures(whole)
