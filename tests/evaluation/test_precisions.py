"""Precisions side by side: paired drops, and when int8 only masks gradients."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.bench import schema
from oat_edge.bundle import Artifact, Bundle
from oat_edge.evaluation.checks import MIN_IMAGES, SHARE, check_quantised_gradients
from oat_edge.evaluation.outcome import Outcome
from oat_edge.evaluation.pack_set import PackSet
from oat_edge.evaluation.precisions import (
    FileOutcomes,
    PrecisionDrop,
    drop_of,
    precision_drops,
)
from tests.bench.conftest import CHECKPOINT, SPEC, make_pack

SEEDS = st.integers(0, 2**32)


@given(seed=SEEDS, n=st.integers(1, 300))
def test_a_drop_counts_images(seed, n):
    rng = np.random.default_rng(seed)
    fp32, other = rng.random((2, n)) < 0.6
    drop = drop_of(fp32, other)
    assert drop.lost == pytest.approx(drop.fp32 - drop.other)
    assert drop.only_fp32 - drop.only_other == round(drop.lost * n)
    order = rng.permutation(n)
    assert drop_of(fp32[order], other[order]) == drop
    same = drop_of(fp32, fp32)
    assert same.lost == same.only_fp32 == same.only_other == 0
    assert same.lost_interval[0] <= 0 <= same.lost_interval[1]


def outcomes(n, seed, *, own=0.4, other=0.4, square=0.4, clean=0.95):
    """fp32 at 40 % under everything, int8 at these shares; the same images are hard for both."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(n) / n

    def right(share):
        return order < share

    fp32 = {"pgd20": right(0.4), "square": right(0.4), "pgd20-int8": right(0.42)}
    int8 = {"pgd20": right(other), "square": right(square), "pgd20-int8": right(own)}
    return tuple(Outcome(clean=right(clean), attacked=one) for one in (fp32, int8))


def verdict(pair):
    return check_quantised_gradients(*(one.robust for one in pair))


@given(seed=SEEDS, n=st.integers(MIN_IMAGES, 400), gain=st.floats(0.15, 0.5))
@settings(max_examples=50)
def test_what_resists_its_own_attack_alone_is_flagged(seed, n, gain):
    pair = outcomes(n, seed, own=0.4 + gain + 12 / n)
    check = verdict(pair)
    assert check.flagged is True and f"of {n}" in check.evidence
    # One of the two others is enough: what was made on fp32 may transfer badly.
    for changes in ({"other": 0.4 + gain + 12 / n}, {"square": 0.4 + gain + 12 / n}):
        assert verdict(outcomes(n, seed, own=0.4 + gain + 12 / n, **changes)).flagged is True


@given(seed=SEEDS, n=st.integers(MIN_IMAGES, 400), share=st.floats(0.05, 0.9))
@settings(max_examples=50)
def test_what_resists_every_attack_better_or_worse_is_not_flagged(seed, n, share):
    """Truly more robust, or less: the attacks agree on it."""
    assert verdict(outcomes(n, seed, own=share, other=share, square=share)).flagged is False
    weaker = min(share, 0.4)  # and a white-box attack that is the strongest is as it should be
    assert verdict(outcomes(n, seed, own=weaker, other=0.4, square=0.4)).flagged is False


@given(seed=SEEDS, n=st.integers(1, 300), share=st.floats(0, 1))
def test_identical_outcomes_are_never_flagged(seed, n, share):
    right = np.random.default_rng(seed).random(n) < share
    same = Outcome(clean=right, attacked=dict.fromkeys(("pgd20", "pgd20-int8", "square"), right))
    assert not verdict((same, same)).flagged


@given(seed=SEEDS, n=st.integers(1, 200), names=st.sets(st.sampled_from(("pgd20", "square"))))
@settings(max_examples=60)
def test_the_verdict_does_not_depend_on_the_order_of_images(seed, n, names):
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    attacks = [*names, "pgd20-int8"]
    fp32, int8 = (
        Outcome(
            clean=rng.random(n) < 0.9,
            attacked={name: rng.random(n) < rng.random() for name in attacks},
        )
        for _ in range(2)
    )
    shuffled = [
        Outcome(
            clean=one.clean[order], attacked={name: r[order] for name, r in one.attacked.items()}
        )
        for one in (fp32, int8)
    ]
    assert verdict((fp32, int8)) == verdict(shuffled)
    if "pgd20" not in names:
        assert verdict(shuffled).flagged is None and "none of pgd20" in verdict(shuffled).evidence


def test_chance_is_not_flagged():
    """Both stand everything at 40 %, image by image by chance: 1 in 1000 tests errs."""
    rng = np.random.default_rng(0)
    flagged = 0
    for _ in range(300):
        fp32, int8 = (
            {name: rng.random(200) < 0.4 for name in ("pgd20", "pgd20-int8", "square")}
            for _ in range(2)
        )
        flagged += bool(check_quantised_gradients(fp32, int8).flagged)
    assert flagged <= 1


def test_without_square_what_stands_the_attack_on_fp32_too_is_not_cleared():
    """Another network stands what was not made on it: no proof that it is more robust."""
    fp32, int8 = (dict(one.robust) for one in outcomes(200, 0, own=0.8, other=0.8, square=0.4))
    assert check_quantised_gradients(fp32, int8).flagged is True
    del fp32["square"], int8["square"]
    check = check_quantised_gradients(fp32, int8)
    assert check.flagged is None and "add square to --attack" in check.evidence
    for shares in ({"own": 0.8, "other": 0.4}, {"own": 0.4, "other": 0.4}):
        fp32, int8 = (dict(one.robust) for one in outcomes(200, 0, **shares))
        del fp32["square"], int8["square"]
        assert check_quantised_gradients(fp32, int8).flagged is (shares["own"] == 0.8)


def test_few_images_or_missing_attacks_are_not_judged():
    few = outcomes(MIN_IMAGES - 1, 0)
    assert verdict(few).flagged is None and "needs 50 images" in verdict(few).evidence
    fp32, int8 = outcomes(100, 0, own=0.9)
    without = {name: right for name, right in int8.robust.items() if name != "pgd20-int8"}
    check = check_quantised_gradients(fp32.robust, without)
    assert check.flagged is None and check.evidence.endswith("there is none of pgd20-int8")
    # A trifle is none, however sure.
    n = 10_000
    trifle = verdict(outcomes(n, 0, own=0.4 + 0.9 * SHARE))
    assert trifle.flagged is False


def artifact(precision, *, width=0.5, pinned=None, source=None, format="onnx"):
    name = f"w{width:.2f}-{precision}{'' if pinned is None else '-lambda1'}.{format}"
    return Artifact(
        file=name, sha256=(precision + str(pinned)).ljust(64, "0"), format=format, width=width,
        precision_requested=precision, precision_observed=precision, pinned_lambda=pinned,
        source=source,
    )  # fmt: skip


def ran(artifact, outcomes, precision=None, backend="onnxruntime-cpu"):
    return FileOutcomes(
        artifact=artifact,
        backend=backend,
        precision=precision or artifact.precision_requested,
        outcomes=outcomes,
    )


def packs_on(sha256, attacks=("pgd20", "pgd20-int8")):
    packs = [make_pack(0.5, attack) for attack in attacks]
    facts = {"file": "w0.50-int8.onnx", "sha256": sha256}
    packs[-1] = dataclasses.replace(packs[-1], settings={"steps": 20, "crafted_on": facts})
    return PackSet(packs, checkpoint_sha256=CHECKPOINT)


def bundle_of(tmp_path, *artifacts):
    return Bundle(tmp_path, "run", CHECKPOINT, SPEC, artifacts)


def test_every_file_stands_beside_the_float32_file_of_its_network_and_device(tmp_path):
    files = [artifact("fp32"), artifact("fp16"), artifact("int8"), artifact("int8", pinned=1.0)]
    bundle = bundle_of(tmp_path, *files)
    fp32, int8 = outcomes(100, 0, own=0.8)
    both = [
        ran(files[0], {0.0: fp32, 1.0: fp32}),
        ran(files[1], {0.0: fp32, 1.0: fp32}, "fp16-emulated"),
        ran(files[2], {0.0: int8, 1.0: fp32}),
        ran(files[3], {1.0: int8}),
    ]
    packs = packs_on(files[2].sha256)
    drops = precision_drops(bundle, packs, both)
    assert [(one.precision, one.lam, one.pinned) for one in drops] == [
        ("fp16-emulated", 0.0, False), ("fp16-emulated", 1.0, False),
        ("int8", 0.0, False), ("int8", 1.0, False), ("int8", 1.0, True),
    ]  # fmt: skip
    half, _, first, second, pinned = drops
    assert half.masking is None and half.worst.lost == 0 and half.fp32_artifact == files[0].file
    assert first.masking.flagged is True and second.masking.flagged is False
    assert set(first.robust_accuracy) == {"pgd20", "pgd20-int8", "square", "worst"}
    assert first.robust_accuracy["pgd20"].lost == 0 == first.worst.lost
    # A pinned file has no float32 twin here, and says what would make one.
    assert pinned.standard_accuracy is None and pinned.robust_accuracy == {}
    assert "no fp32 file of width 0.5 ran beside it" in pinned.reason
    assert pinned.masking.flagged is None and pinned.masking.evidence == pinned.reason
    for one in drops:
        assert schema.load(PrecisionDrop, schema.dump(one), "drop") == one


def test_one_precision_alone_is_beside_nothing(tmp_path):
    one = ran(artifact("fp32"), {0.0: outcomes(60, 0)[0]})
    assert precision_drops(bundle_of(tmp_path), None, [one]) == ()
    assert precision_drops(bundle_of(tmp_path), None, []) == ()


def test_another_device_or_width_is_no_reference(tmp_path):
    fp32, int8 = outcomes(60, 0)
    file = ran(artifact("int8"), {0.0: int8})
    for other in (
        ran(artifact("fp32"), {0.0: fp32}, backend="onnxruntime-cuda"),
        ran(artifact("fp32", width=1.0), {0.0: fp32}),
        ran(artifact("fp32", format="trt"), {0.0: fp32}),
    ):
        (drop,) = precision_drops(bundle_of(tmp_path), None, [other, file])
        assert drop.reason is not None and drop.masking.flagged is None
    (drop,) = precision_drops(bundle_of(tmp_path), None, [ran(artifact("fp32"), {1.0: fp32}), file])
    assert drop.reason == "w0.50-fp32.onnx was not evaluated at λ=0"


def test_an_attack_made_on_another_int8_file_proves_nothing(tmp_path):
    """Quantised again: the old pack's gradients are no longer this file's."""
    files = artifact("fp32"), artifact("int8")
    fp32, int8 = outcomes(100, 0, own=0.9)
    ran_both = [ran(files[0], {0.0: fp32}), ran(files[1], {0.0: int8})]
    for packs, text in (
        (packs_on("b" * 64), "was made on w0.50-int8.onnx, not on the graph of w0.50-int8.onnx"),
        (packs_on(files[1].sha256, ("pgd20",)), "no pgd20-int8 pack of width 0.5 was replayed"),
        (None, "no pgd20-int8 pack of width 0.5 was replayed"),
    ):
        (drop,) = precision_drops(bundle_of(tmp_path, *files), packs, ran_both)
        assert drop.masking.flagged is None and text in drop.masking.evidence
        assert drop.worst is not None and drop.reason is None


def test_an_engine_is_asked_about_the_graph_it_is_built_from(tmp_path):
    onnx = artifact("int8")
    engines = artifact("fp32", format="trt"), artifact("int8", format="trt", source=onnx.file)
    fp32, int8 = outcomes(100, 0, own=0.9)
    both = [ran(engines[0], {0.0: fp32}), ran(engines[1], {0.0: int8})]
    bundle = bundle_of(tmp_path, onnx, *engines)
    (drop,) = precision_drops(bundle, packs_on(onnx.sha256), both)
    assert drop.masking.flagged is True
    (drop,) = precision_drops(bundle_of(tmp_path, *engines), packs_on(onnx.sha256), both)
    assert drop.masking.flagged is None


def test_settings_of_packs_name_the_file_of_each_width():
    packs = [make_pack(width, "pgd20-int8") for width in (0.5, 1.0)]
    packs = [
        dataclasses.replace(pack, settings={"steps": 20, "crafted_on": {"sha256": str(pack.width)}})
        for pack in packs
    ]
    both = PackSet([*packs, make_pack(0.5)], checkpoint_sha256=CHECKPOINT)
    assert both.settings == {
        "pgd20-int8": {
            "steps": 20, "crafted_on": {"0.5": {"sha256": "0.5"}, "1": {"sha256": "1.0"}},
        },
        "pgd20": {"steps": 20},
    }  # fmt: skip
    assert packs[0].settings["crafted_on"] == {"sha256": "0.5"}
