from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from oat_edge.bench.run import bench_bundle
from oat_edge.bundle import Bundle, add_artifacts
from oat_edge.errors import InputError
from oat_edge.evaluation.pack import AttackPack
from oat_edge.files import sha256_file
from tests.bench.conftest import QUICKEST

pytestmark = pytest.mark.usefixtures("frozen_heap")


@pytest.mark.parametrize(
    ("widths", "lambdas", "match"),
    [((0.75,), (0.0,), "width 0.75"), ((1.0,), (1.5,), "lambda is 1.5")],
)
def test_bad_choices_fail_before_measuring(bundle, widths, lambdas, match):
    with pytest.raises(InputError, match=match):
        bench_bundle(bundle, QUICKEST, widths=widths, lambdas=lambdas)


@pytest.fixture
def folder(bundle, tmp_path):
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))


def test_damaged_artifacts_are_not_measured(folder):
    broken = Path(folder / "attacks-w1.00-pgd20.npz")
    broken.write_bytes(broken.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match="damaged"):
        bench_bundle(Bundle.open(folder), QUICKEST, widths=(1.0,), lambdas=(0.0,))


def replace_pack(folder, bundle, name, **changes):
    """The bundle with one pack changed, and its hash with it."""
    pack = dataclasses.replace(AttackPack.load(folder / name), **changes)
    pack.save(folder / name)
    artifacts = [
        dataclasses.replace(a, sha256=sha256_file(folder / name)) if a.file == name else a
        for a in bundle.artifacts
    ]
    return add_artifacts(
        folder,
        artifacts,
        run=bundle.run,
        checkpoint_sha256=bundle.checkpoint_sha256,
        spec=bundle.spec,
    )


WIDE = np.zeros((12, 1, 4, 8), dtype=np.uint8)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"images": WIDE, "adversarial": np.stack([WIDE] * 3)}, "has images"),
        ({"eps": 16 / 255}, "ε 16/255, expected 8/255"),
        ({"checkpoint_sha256": "d" * 64}, "checkpoint dddd"),
        ({"attack": "square"}, "rename it"),
    ],
)
@pytest.mark.parametrize("width", [0.5, 1.0])
def test_a_pack_of_something_else_is_refused_whatever_width_is_benched(
    bundle, folder, changes, match, width
):
    changed = replace_pack(folder, bundle, "attacks-w1.00-pgd20.npz", **changes)
    with pytest.raises(InputError, match=match):
        bench_bundle(changed, QUICKEST, widths=(width,), lambdas=(0.0,))


def test_all_figures_are_of_the_images_that_all_packs_hold(bundle, folder):
    name = "attacks-w1.00-pgd20.npz"
    pack = AttackPack.load(folder / name)
    some = {key: getattr(pack, key)[3:9] for key in ("indices", "labels", "images")}
    changed = replace_pack(folder, bundle, name, **some, adversarial=pack.adversarial[:, 3:9])
    report, _ = bench_bundle(changed, QUICKEST, widths=(0.5,), lambdas=(0.0,))
    assert {row.num_samples for row in report.rows} == {6}
    assert {grid.num_samples for grid in report.transfer} == {6}
