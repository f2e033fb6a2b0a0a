"""One width of a network as one ONNX file (DESIGN, section 5).

Inputs `image` (N,C,H,W) and `lambda` (N,), output `logits` (N,classes), all float32, N dynamic,
opset 18, no external data. With λ pinned there is no `lambda` input. In `fp16` the body computes
in half precision; what goes in and out stays float32.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oat_edge import __version__
from oat_edge.bundle import Artifact
from oat_edge.errors import BuildError
from oat_edge.files import sha256_file, write_bytes
from oat_edge.network_spec import NetworkSpec
from oat_edge.require import require

if TYPE_CHECKING:
    from oat_edge.nn.fold import FoldedNetwork

OPSET = 18


def export(
    folded: FoldedNetwork,
    spec: NetworkSpec,
    *,
    width: float,
    folder: Path,
    checkpoint_sha256: str,
    precision: str = "fp32",
    pinned_lambda: float | None = None,
) -> Artifact:
    """Write `folded` into `folder`, atomically; the caller lists the artifact in a manifest.

    precision: "fp32" or "fp16" (int8 needs images: `oat_edge.calib.quantize`).
    Raises `BuildError` if the exporter fails or does not keep to the contract of the graph.
    """
    model = trace(folded, spec, pinned_lambda)
    if precision == "fp16":
        from oat_edge.exporters.half import to_half

        to_half(model)
    return save(
        model,
        spec,
        width=width,
        folder=folder,
        checkpoint_sha256=checkpoint_sha256,
        precision=precision,
        pinned_lambda=pinned_lambda,
    )


def trace(folded: FoldedNetwork, spec: NetworkSpec, pinned_lambda: float | None = None) -> Any:
    """The float32 graph as an onnx.ModelProto, without metadata. Raises `BuildError`."""
    require("onnx", purpose="exporting to ONNX")
    require("onnxscript", purpose="exporting to ONNX")
    require("torch", purpose="exporting to ONNX")
    model = _trace(folded, spec, pinned_lambda)
    if pinned_lambda is not None:
        from oat_edge.exporters.graph import fold_affine_into_conv

        if not fold_affine_into_conv(model) and _has_conv_before_norm(folded):
            raise BuildError(
                "no affine folded into a convolution: the exporter's graph has changed"
            )
    return model


def save(
    model: Any,
    spec: NetworkSpec,
    *,
    width: float,
    folder: Path,
    checkpoint_sha256: str,
    precision: str,
    pinned_lambda: float | None = None,
    target: str | None = None,
    calibration: dict[str, Any] | None = None,
) -> Artifact:
    """Write a graph with its facts into `folder`, atomically. `model` is changed.

    target, calibration: of int8 files, as in `Artifact`. Raises `BuildError` if the graph does
    not keep to the contract.
    """
    _strip(model)
    facts = {
        "spec": json.dumps(spec.to_json(), sort_keys=True),
        "width": repr(width),
        "precision": precision,
        "checkpoint_sha256": checkpoint_sha256,
        "version": __version__,
    }
    if pinned_lambda is not None:
        facts["pinned_lambda"] = repr(pinned_lambda)
    if target is not None:
        facts["target"] = target
    if calibration is not None:
        facts["calibration_sha256"] = calibration["images"]["sha256"]
    for key, value in facts.items():
        model.metadata_props.add(key=f"oat_edge.{key}", value=value)
    model.producer_name, model.producer_version = "oat-edge", __version__
    _check(model, pinned=pinned_lambda is not None)
    suffix = "" if pinned_lambda is None else f"-lambda{in_name(pinned_lambda, 'g')}"
    kind = f"{precision}-{target}" if target == "trt" else precision
    path = folder / f"w{in_name(width)}-{kind}{suffix}.onnx"
    write_bytes(path, model.SerializeToString(deterministic=True))
    return Artifact(
        file=path.name,
        sha256=sha256_file(path),
        format="onnx",
        width=width,
        precision_requested=precision,
        precision_observed=precision,
        pinned_lambda=pinned_lambda,
        target=target,
        calibration=calibration,
        versions={
            "oat-edge": __version__,
            **{name: version(name) for name in ("torch", "onnx")},
            "opset": str(OPSET),
        },
    )


def in_name(value: float, format: str = ".2f") -> str:
    """A number in a file name: short where that says it exactly, so that no two names collide."""
    text = f"{value:{format}}"
    return text if float(text) == value else repr(value)


def _trace(folded: FoldedNetwork, spec: NetworkSpec, pinned_lambda: float | None) -> Any:
    import torch

    from oat_edge.nn.fold import PinnedNetwork

    batch = torch.export.Dim("batch", min=1)
    # An example batch of two: one would be taken for a constant.
    image = torch.zeros(2, *spec.image_shape)
    lam = torch.full((2,), spec.lambdas[-1])
    module: torch.nn.Module
    if pinned_lambda is None:
        module, arguments, names = folded, (image, lam), ["image", "lambda"]
        shapes: dict[str, Any] = {"image": {0: batch}, "lam": {0: batch}}
    else:
        module, names = PinnedNetwork(folded, pinned_lambda), ["image"]
        arguments, shapes = (image,), {"image": {0: batch}}  # type: ignore[assignment]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch.onnx and onnxscript
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever broke inside
        raise BuildError(f"ONNX export of {spec.arch} failed: {_reason(error)}") from error
    finally:
        logger.setLevel(level)
    assert program is not None
    return program.model_proto


def _reason(error: BaseException) -> str:
    """What broke, in one line: the exporter wraps it in advice on its own stages, in colour."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return f"{type(error).__name__}: {text.partition(chr(10))[0]}"


def _has_conv_before_norm(folded: FoldedNetwork) -> bool:
    """Whether some convolution's output goes straight into a channel affine."""
    import torch

    from oat_edge.nn.fold import ChannelAffine

    modules = list(folded.backbone.modules())
    return any(
        isinstance(a, torch.nn.Conv2d) and isinstance(b, ChannelAffine)
        for a, b in pairwise(modules)
    )


def _strip(model: Any) -> None:
    """Drop what the exporter notes beside the graph: source paths and stack traces leak."""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def _check(model: Any, *, pinned: bool) -> None:
    """The exporter has been seen to ignore the opset without an error: look at what it made."""
    import onnx

    opset = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if opset != {"ai.onnx": OPSET}:
        raise BuildError(f"the exporter made opsets {opset}, expected ai.onnx {OPSET}")
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    if inputs != (["image"] if pinned else ["image", "lambda"]) or outputs != ["logits"]:
        raise BuildError(f"the exporter made inputs {inputs} and outputs {outputs}")
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise BuildError(f"the exporter fixed the batch size of {value.name}")
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise BuildError(f"the exported graph is not valid ONNX: {error}") from error
