"""`oat-edge eval BUNDLE` without its command line: packs replayed, and Square on the files."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from oat_edge.bench.environment import collect
from oat_edge.bundle import Artifact, Bundle, add_artifacts
from oat_edge.errors import InputError
from oat_edge.evaluation.accuracy import to_float
from oat_edge.evaluation.checks import TOO_WEAK
from oat_edge.evaluation.config import ATTACKS, EvalConfig
from oat_edge.evaluation.engine import evaluate_bundle
from oat_edge.evaluation.outcome import right_under_square
from oat_edge.evaluation.pack import AttackPack
from oat_edge.evaluation.report import REPORT, SAMPLES, EvalReport, row_name
from oat_edge.files import sha256_file
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime import open_artifact
from oat_edge.runtime.ort import OrtRunner
from tests.bench.conftest import KNOTS, make_bundle, make_pack

WIDTHS = (0.5, 1.0)


@pytest.fixture
def bundle(tmp_path):
    """Width 0.5 with PGD-20 and APGD packs and a file pinned at 0.3; width 1 with PGD-20."""
    return make_bundle(tmp_path / "b")


def evaluate(bundle, *, widths=WIDTHS, lambdas=KNOTS, fresh=False, progress=None, **changes):
    config = EvalConfig(**{"num_queries": 40, **changes})
    options = {"widths": widths, "lambdas": lambdas, "fresh": fresh}
    if progress:
        options["progress"] = progress
    return evaluate_bundle(bundle, config, **options)


def figures(evaluation):
    value = evaluation.report.to_json()
    del value["environment"]
    for row in value["rows"]:
        row["seconds"] = sorted(row["seconds"])
    return value


def packs_of(bundle):
    return {
        (artifact.attack, artifact.width): AttackPack.load(bundle.checked_path(artifact))
        for artifact in bundle.of_format("attacks")
    }


def right_by_hand(runner, lam, images, labels):
    """One image at a time."""
    logits = [runner.infer(to_float(image[None]), lam)[0] for image in images]
    return np.array([row.argmax() for row in logits]) == labels


def test_what_is_reported_is_what_replaying_by_hand_gives(bundle):
    evaluation = evaluate(bundle, attacks=("pgd20",))
    packs = packs_of(bundle)
    rows = {(row.artifact, row.lam): row for row in evaluation.report.rows}
    assert len(rows) == 2 * 3 + 1
    for artifact in bundle.of_format("onnx"):
        with open_artifact(bundle, artifact) as runner:
            lambdas = KNOTS if artifact.pinned_lambda is None else (artifact.pinned_lambda,)
            for lam in lambdas:
                row = rows[artifact.file, lam]
                pack = packs["pgd20", artifact.width]
                clean = right_by_hand(runner, lam, pack.images, pack.labels)
                own = right_by_hand(
                    runner, lam, pack.adversarial[pack.lambdas.index(lam)], pack.labels
                )
                elsewhere = [
                    right_by_hand(runner, lam, other.adversarial[i], other.labels)
                    for (attack, width), other in packs.items()
                    for i, source in enumerate(other.lambdas)
                    if attack == "pgd20" and (width, source) != (artifact.width, lam)
                ]
                assert len(elsewhere) == 5
                transfer = np.logical_and.reduce([clean, *elsewhere])
                assert row.standard_accuracy == clean.mean()
                assert row.robust_accuracy == {
                    "pgd20": (clean & own).mean(),
                    "transfer": transfer.mean(),
                    "worst": (transfer & own).mean(),
                }
                assert row.pinned == (artifact.pinned_lambda is not None)
                assert (row.sha256, row.width) == (artifact.sha256, artifact.width)
                assert row.backend == runner.backend and row.num_samples == 12


def test_the_samples_reproduce_the_report_and_it_comes_back(bundle, tmp_path):
    evaluation = evaluate(bundle, attacks=("pgd20", "square"))
    saved = evaluation.save(tmp_path / "out")
    assert EvalReport.load(tmp_path / "out" / REPORT) == saved
    with np.load(tmp_path / "out" / SAMPLES) as file:
        for row in saved.rows:
            name = row_name(row.artifact, OperatingPoint(row.width, row.lam))
            assert file[f"{name}|clean"].mean() == row.standard_accuracy
            for attack, share in row.robust_accuracy.items():
                assert file[f"{name}|{attack}"].mean() == share


def test_all_takes_what_every_width_has_and_says_what_it_left_out(bundle):
    report = evaluate(bundle).report
    assert all(
        list(row.robust_accuracy) == ["pgd20", "square", "transfer", "worst"]
        for row in report.rows
    )  # fmt: skip
    first, second = report.warnings
    assert first == "apgd: left out, its packs are for 0.5@0, 0.5@0.3, 0.5@1 alone"
    assert second.startswith("autoattack: left out, the bundle has no pack")
    assert second.endswith("(oat-edge export --attack autoattack)")
    assert report.settings["mode"] == (
        "fast mode (pgd20 packs (8-bit, crafted on the network), replayed; square): "
        "without AutoAttack, which may well find less robustness"
    )
    half = evaluate(bundle, widths=(0.5,)).report
    assert half.warnings == (second,)
    assert set(half.settings["attacks"]) == {"pgd20", "apgd", "square"}
    assert {"pgd20", "apgd", "square"} < set(half.rows[0].robust_accuracy)


def test_all_at_a_lambda_of_no_pack_is_square_alone_and_says_so(bundle):
    report = evaluate(bundle, lambdas=(0.5,), num_queries=5).report
    assert set(report.settings["attacks"]) == {"square"} and report.transfer == ()
    assert [text.partition(":")[0] for text in report.warnings] == list(ATTACKS[:3])
    assert all("left out" in text for text in report.warnings)
    assert sum("its packs are for" in text for text in report.warnings) == 2


def test_a_lambda_that_one_pack_lacks_leaves_out_that_attack_only(bundle):
    pack = make_pack(1.0, "apgd")
    short = dataclasses.replace(pack, lambdas=KNOTS[:2], adversarial=pack.adversarial[:2])
    other = with_pack(bundle, short)
    report = evaluate(other, num_queries=5).report
    assert set(report.settings["attacks"]) == {"pgd20", "square"}
    assert report.warnings[0].startswith("apgd: left out, its packs are for 0.5@0,")
    report = evaluate(other, lambdas=KNOTS[:2], num_queries=5).report
    assert set(report.settings["attacks"]) == {"pgd20", "apgd", "square"}
    with pytest.raises(InputError, match=r"no apgd pack is for width 1 at λ=1 .*has λ 0, 0.3\)"):
        evaluate(other, attacks=("apgd",))


def test_all_four_by_name_need_all_packs_and_all_does_not(bundle):
    """The same attacks, and yet not the same: a name is an order."""
    with pytest.raises(InputError, match=r"no apgd pack is for width 1 at λ=0 .*has none"):
        evaluate(bundle, attacks=ATTACKS)
    with pytest.raises(InputError, match=r"has no autoattack pack \(it has pgd20, apgd\)"):
        evaluate(bundle, attacks=ATTACKS, widths=(0.5,))
    assert not (bundle.path / "eval").exists()
    whole = bundle
    for width, attack in ((1.0, "apgd"), (0.5, "autoattack"), (1.0, "autoattack")):
        whole = with_pack(whole, make_pack(width, attack))
    named, default = (evaluate(whole, attacks=one, num_queries=5) for one in (ATTACKS, None))
    assert figures(named) == figures(default) and named.report.warnings == ()
    assert set(named.report.settings["attacks"]) == set(ATTACKS)
    assert named.report.settings["mode"] == (
        "PGD-20 and AutoAttack packs (8-bit, crafted on the network), replayed"
    )


def test_square_alone_names_no_other_attack(bundle):
    report = evaluate(bundle, attacks=("square",), lambdas=(0.0, 0.5)).report
    assert "pgd20" not in report.settings["mode"] and report.transfer == ()
    for row in report.rows:
        assert list(row.robust_accuracy) == ["square", "worst"]
        assert row.robust_accuracy["worst"] == row.robust_accuracy["square"]
    assert {row.lam for row in report.rows} == {0.0, 0.5, 0.3}


def checks_of(row):
    return {check.name: check for check in row.checks}


def test_what_needs_gradients_is_said_to_be_unchecked(bundle):
    for row in evaluate(bundle, attacks=("pgd20", "square")).report.rows:
        checks = checks_of(row)
        assert checks.pop("randomised output").flagged is False
        square = checks.pop("square")
        assert (
            square.flagged is None and "needs 50 images or more, there were 12" in square.evidence
        )
        assert set(checks) == {"zero gradient", "single step", "restarts", "growing ε"}
        assert {check.flagged for check in checks.values()} == {None}


def with_many(bundle, num):
    """The same with packs of more images: noise, which fools far less than Square does."""
    for attack, width in packs_of(bundle):
        bundle = with_pack(bundle, make_pack(width, attack, num=num))
    return bundle


def test_square_above_the_packs_is_a_weak_attack_or_a_sign_of_masking(bundle):
    """PGD-20 alone may be too weak; with APGD's images there too, Square should find nothing."""
    many = with_many(bundle, 250)
    alone = evaluate(many, attacks=("pgd20", "square"), num_queries=200).report
    for row in alone.rows:
        square = checks_of(row)["square"]
        assert row.robust_accuracy["square"] < row.robust_accuracy["pgd20"] - 0.02
        assert square.flagged is None and square.evidence.endswith(TOO_WEAK)
        assert "under the replayed pgd20;" in square.evidence
        assert row.status == "ok"
    half = {"widths": (0.5,), "num_queries": 200}
    both = evaluate(many, attacks=("pgd20", "apgd", "square"), **half).report
    for row in both.rows:
        square = checks_of(row)["square"]
        assert square.flagged is True and "the replayed pgd20 and apgd;" in square.evidence
        assert row.status == "suspect"
    few = evaluate(many, attacks=("pgd20", "apgd", "square"), widths=(0.5,), num_queries=1).report
    for row in few.rows:
        assert checks_of(row)["square"].flagged is False and row.status == "ok"


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
        monkeypatch.setattr("oat_edge.evaluation.engine.collect", lambda e=environment: e)
        evaluate(bundle, **options)
        assert square.since() == runs
    # The clock, the load and the commit are no part of it.
    changes = {"load_average": (9.0,) * 3, "timestamp_utc": "1970", "git_commit": "f" * 40}
    later = dataclasses.replace(here, **changes)
    monkeypatch.setattr("oat_edge.evaluation.engine.collect", lambda: later)
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


def test_progress_grows_to_the_total(bundle):
    told = []
    evaluate(bundle, attacks=("pgd20", "square"), progress=lambda *call: told.append(call))
    done, totals, _ = zip(*told, strict=True)
    assert done[0] == 0 and list(done) == sorted(done)
    assert done[-1] == pytest.approx(totals[-1]) and max(done) <= totals[-1]


def test_fewer_samples_are_a_seeded_choice_of_the_packs_images(bundle):
    few = evaluate(bundle, num_samples=5, attacks=("pgd20",))
    assert len(few.indices) == 5 and {row.num_samples for row in few.report.rows} == {5}
    other = evaluate(bundle, num_samples=5, seed=3, attacks=("pgd20",))
    assert not np.array_equal(few.indices, other.indices)
    assert few.report.warnings == ()
    for num, warnings in (
        (11, ()), (12, ()), (13, ("samples: 13 asked for, the packs hold 12",)), (None, ()),
    ):  # fmt: skip
        some = evaluate(bundle, num_samples=num, attacks=("pgd20",))
        assert len(some.indices) == min(num or 12, 12) and some.report.warnings == warnings


REFUSED = {
    "attack": ({"attacks": ("autoattack",)}, r"no autoattack pack \(it has pgd20, apgd\)"),
    "attack of a width": ({"attacks": ("apgd",)}, r"no apgd pack is for width 1 .*has none.*--wid"),
    "lambda": (
        {"lambdas": (0.5,), "attacks": ("pgd20",)},
        r"no pgd20 pack is for width 0.5 at λ=0.5 .*has λ 0, 0.3, 1",
    ),
    "lambda outside": ({"lambdas": (1.5,)}, r"lambda is 1.5: bundle tiny-run has \[0, 1\]"),
    "eps": ({"eps": 4 / 255}, r"eps is 0.0156863: the packs .* made at 8/255"),
    "width": ({"widths": (0.75,)}, r"no onnx artifact of width 0.75"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_packs_do_not_hold_is_refused_before_any_work(kind, bundle):
    changes, pattern = REFUSED[kind]
    with pytest.raises(InputError, match=pattern) as caught:
        evaluate(bundle, **changes)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert not (bundle.path / "eval").exists()


def test_the_same_eps_may_be_named(bundle):
    for eps in (8 / 255, 8 / 255 * (1 + 1e-12)):  # "8/255", or the digits of another language
        assert evaluate(bundle, eps=eps, attacks=("pgd20",)).report.settings["eps"] == 8 / 255
    with pytest.raises(InputError, match="made at 8/255"):
        evaluate(bundle, eps=8 / 255 * (1 + 1e-6), attacks=("pgd20",))


@pytest.mark.parametrize(("attacks", "told"), [(("pgd20",), False), (("pgd20", "square"), True)])
def test_a_radius_between_levels_is_told_where_square_runs(attacks, told, bundle):
    eps = 8.5 / 255
    for attack, width in packs_of(bundle):
        bundle = with_pack(bundle, dataclasses.replace(make_pack(width, attack), eps=eps))
    other = dataclasses.replace(bundle, spec=dataclasses.replace(bundle.spec, eps=eps))
    report = evaluate(other, attacks=attacks, num_queries=2).report
    assert (len(report.warnings) == 1) is told
    assert all("ε is 8.5/255, Square attacks within 8/255" in text for text in report.warnings)
    if told:
        assert report.settings["attacks"]["square"]["levels"] == 8


def test_without_packs_there_is_nothing_to_replay(tmp_path):
    bare = make_bundle(tmp_path / "bare", packs=False)
    with pytest.raises(InputError, match=r"has no attack packs.*oat-edge export"):
        evaluate(bare)


def test_a_damaged_pack_or_file_is_refused(bundle):
    for artifact in bundle.artifacts:
        path = bundle.path / artifact.file
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(InputError, match="is damaged"):
            evaluate(bundle, num_queries=1)
        path.write_bytes(content)


def with_pack(bundle, pack):
    path = bundle.path / f"attacks-w{pack.width:.2f}-{pack.attack}.npz"
    pack.save(path)
    artifact = Artifact(
        file=path.name, sha256=sha256_file(path), format="attacks",
        width=pack.width, attack=pack.attack,
    )  # fmt: skip
    add_artifacts(
        bundle.path, [artifact], run=bundle.run,
        checkpoint_sha256=bundle.checkpoint_sha256, spec=bundle.spec,
    )  # fmt: skip
    return Bundle.open(bundle.path)


def test_packs_of_another_checkpoint_or_radius_are_refused(bundle):
    for changes, pattern in (
        ({"checkpoint_sha256": "d" * 64}, r"is of checkpoint dddddddddddd"),
        ({"eps": 9 / 255}, r"ε 9/255, expected 8/255"),
    ):
        other = with_pack(bundle, dataclasses.replace(make_pack(1.0, "apgd"), **changes))
        with pytest.raises(InputError, match=pattern):
            evaluate(other)


def test_two_packs_of_every_width_give_two_grids_and_one_worst_case(bundle):
    both = with_pack(bundle, make_pack(1.0, "apgd"))
    report = evaluate(both, num_queries=5).report
    assert [text.partition(":")[0] for text in report.warnings] == ["autoattack"]
    assert {grid.attack for grid in report.transfer} == {"pgd20", "apgd"}
    assert set(report.settings["attacks"]) == {"pgd20", "apgd", "square"} < set(ATTACKS)
    for row in report.rows:
        assert row.robust_accuracy["worst"] == min(row.robust_accuracy.values())
        assert list(row.robust_accuracy)[-2:] == ["transfer", "worst"]


def test_a_file_pinned_where_no_pack_is_stays_out_and_alone_is_refused(bundle):
    pinned = [
        dataclasses.replace(artifact, pinned_lambda=0.25) if artifact.pinned_lambda else artifact
        for artifact in bundle.artifacts
    ]
    other = dataclasses.replace(bundle, artifacts=tuple(pinned))
    report = evaluate(other, attacks=("pgd20",)).report
    assert any("left out, no attack pack holds λ=0.25" in text for text in report.warnings)
    assert not any(row.pinned for row in report.rows)
    alone = dataclasses.replace(
        bundle, artifacts=tuple(a for a in pinned if a.format != "onnx" or a.pinned_lambda)
    )
    with pytest.raises(InputError, match="has nothing that can be evaluated"):
        evaluate(alone, widths=(0.5,), attacks=("pgd20",))
