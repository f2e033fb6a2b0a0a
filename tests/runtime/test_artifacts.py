from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import InputError
from oat_edge.runtime.artifacts import (
    CPU_PRECISIONS,
    ENGINES,
    artifacts_for,
    choose_widths,
    pick,
    widths_for,
)
from oat_edge.runtime.recipe import Recipe

ANY = {"format": None, "precision": None, "pinned_lambda": None}


def onnx(width, precision, pinned=None):
    suffix = "" if pinned is None else f"-lambda{pinned:g}"
    return Artifact(
        file=f"w{width:.2f}-{precision}{suffix}.onnx", sha256="0" * 64, format="onnx", width=width,
        precision_requested=precision, precision_observed=precision, pinned_lambda=pinned,
    )  # fmt: skip


def engine(source, format="trt"):
    recipe = Recipe(format=format, precision=source.precision_requested)
    return dataclasses.replace(
        source, file=source.file.replace(".onnx", f".{format}.engine"), sha256="", format=format,
        source=source.file, recipe=recipe.to_json(), deferred=True, precision_observed=None,
    )  # fmt: skip


@pytest.fixture
def bundle_of(tiny_bundle):
    def make(*artifacts):
        return dataclasses.replace(tiny_bundle, artifacts=artifacts)

    return make


files = st.lists(
    st.builds(
        lambda width, precision, pinned, format: (
            onnx(width, precision, pinned)
            if format == "onnx"
            else engine(onnx(width, precision, pinned), format)
        ),
        st.sampled_from([0.5, 1.0]),
        st.sampled_from(["fp32", "fp16"]),
        st.sampled_from([None, 1.0]),
        st.sampled_from(["onnx", *ENGINES]),
    ),
    unique_by=lambda artifact: artifact.file,
    max_size=8,
)


@given(artifacts=files, device=st.sampled_from(["cpu", "cuda"]))
def test_a_device_gets_what_it_can_run_and_a_gpu_its_engines(artifacts, device):
    bundle = Bundle.__new__(Bundle)
    for name, value in {"path": __file__, "artifacts": tuple(artifacts)}.items():
        object.__setattr__(bundle, name, value)
    widths = widths_for(bundle, device=device)
    chosen = artifacts_for(bundle, widths, device=device)
    assert {artifact.width for artifact in chosen} == set(widths)
    for artifact in chosen:
        if device == "cpu":
            assert artifact.format == "onnx" and artifact.precision_requested in CPU_PRECISIONS
        else:
            mates = [a for a in artifacts if a.width == artifact.width]
            assert (artifact.format in ENGINES) == any(a.format in ENGINES for a in mates)
    left = {artifact.width for artifact in artifacts} - set(widths)
    assert not left or device == "cpu"


def test_half_precision_on_a_cpu_must_be_asked_for(bundle_of):
    bundle = bundle_of(onnx(0.5, "fp16"))
    with pytest.raises(
        InputError, match=r"no onnx file of width 0\.5 for cpu \(it has w0\.50-fp16"
    ):
        artifacts_for(bundle, [0.5])
    assert artifacts_for(bundle, [0.5], precisions=["fp16"]) == list(bundle.artifacts)


def test_a_format_that_was_named_is_taken_beside_the_engines(bundle_of):
    half = onnx(0.5, "fp16")
    bundle = bundle_of(half, engine(half))
    assert artifacts_for(bundle, [0.5], device="cuda") == [engine(half)]
    both = artifacts_for(bundle, [0.5], device="cuda", formats=["onnx", "trt"])
    assert both == [half, engine(half)]


def test_an_application_gets_the_widest_engine_of_the_smallest_precision(bundle_of):
    narrow, single, half = onnx(0.5, "fp16"), onnx(1.0, "fp32"), onnx(1.0, "fp16")
    pinned = onnx(1.0, "fp16", pinned=1.0)
    bundle = bundle_of(engine(narrow), single, half, engine(single), engine(half), engine(pinned))
    assert pick(bundle, device="cuda", width=None, **ANY) == engine(half)
    assert pick(bundle, device="cpu", width=None, **ANY) == single
    assert pick(bundle, device="cuda", width=0.5, **ANY) == engine(narrow)
    wanted = ANY | {"pinned_lambda": 1.0}
    assert pick(bundle, device="cuda", width=1.0, **wanted) == engine(pinned)
    wanted = ANY | {"format": "onnx", "precision": "fp32"}
    assert pick(bundle, device="cuda", width=1.0, **wanted) == single


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.75}, "no onnx file of width 0.75 for cpu"),
        ({"width": 0.5, "pinned_lambda": 0.3}, "pinned at λ=0.3 for cpu"),
        ({"width": 0.5, "format": "trt"}, "no trt file of width 0.5"),
        ({"width": 0.5, "format": "tensorrt"}, "format is 'tensorrt': expected onnx, trt, trt-rtx"),
        ({"width": 0.5, "precision": "half"}, "precision is 'half': expected fp32, fp16, int8"),
    ],
)
def test_what_is_not_there_says_how_to_make_it(options, message, tiny_bundle):
    with pytest.raises(InputError) as caught:
        pick(tiny_bundle, device="cpu", **ANY | options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_widths_that_a_device_cannot_run_are_told_not_dropped(bundle_of):
    narrow, wide = onnx(0.5, "fp32"), onnx(1.0, "fp16")
    bundle = bundle_of(narrow, wide, engine(wide))
    assert choose_widths(bundle, "all") == ((0.5,), (1.0,))
    assert choose_widths(bundle, "all", device="cuda") == ((0.5, 1.0), ())
    assert choose_widths(bundle, "1.0") == ((1.0,), ())  # which `artifacts_for` then refuses
    with pytest.raises(InputError, match=r"no onnx file of width 1 for cpu .*for GPUs"):
        artifacts_for(bundle, (1.0,))
    with pytest.raises(InputError, match=r"width 0\.75 is not there: have 0\.5, 1"):
        choose_widths(bundle, "0.75")


def test_the_widest_is_that_of_the_bundle_not_of_what_fits(bundle_of):
    bundle = bundle_of(onnx(0.5, "fp32"), onnx(1.0, "fp16"))
    with pytest.raises(InputError, match="no onnx file of width 1 for cpu"):
        pick(bundle, device="cpu", width=None, **ANY)


@pytest.mark.parametrize("device", ["gpu", "CPU", "jetson", ""])
def test_a_device_that_is_none_is_not_taken_for_a_missing_driver(device, tiny_bundle):
    with pytest.raises(InputError, match=f"device is '{device}': expected cpu or cuda"):
        pick(tiny_bundle, device=device, width=None, **ANY)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"width": 0.6}, "the network was trained for widths 0.5, 1"),
        ({"width": 0.5, "precision": "int8"}, "--width 0.5 --precision int8 --target cpu"),
        ({"width": 0.5, "precision": "fp16"}, "oat-edge export --width 0.5 --precision fp16"),
    ],
)
def test_no_remedy_leads_into_another_refusal(options, remedy, tiny_bundle):
    with pytest.raises(InputError) as caught:
        pick(tiny_bundle, device="cpu", **ANY | options)
    assert remedy in str(caught.value)


def test_a_remedy_names_a_bundle_that_lies_elsewhere(tiny_bundle, tmp_path):
    elsewhere = dataclasses.replace(tiny_bundle, path=tmp_path)
    with pytest.raises(InputError, match=f"--precision fp16 --out {tmp_path}$"):
        pick(elsewhere, device="cpu", width=0.5, **ANY | {"precision": "fp16"})
